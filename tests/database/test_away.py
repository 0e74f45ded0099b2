"""A real model server and a real worker, whose database fails and recovers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.processes import ModelServer, wait_for
from tests.proxy import Proxy, Stall, cut
from tests.settings_store.test_repository import own_database
from tests.web.conftest import Worker


def post(worker: Worker, path: str, body: Any) -> requests.Response:
    return requests.post(f"{worker.url}{path}", json=body, timeout=60)


def started(server: ModelServer, name: str) -> Worker:
    worker = Worker(server, server.folder / f"{name}.log")
    wait_for(lambda: b"ready: http" in worker.log.read_bytes(), 60, "the worker's ready line")
    return worker


@pytest.mark.long
def test_calls_are_answered_while_the_database_says_nothing_and_changes_wait_until_it_is_back(
    tmp_path: Path,
) -> None:
    with own_database("postgresql") as direct:
        proxy = Proxy(5432)
        url = direct.replace("5432", str(proxy.port))
        server = ModelServer(tmp_path, EMBEDDING_USE_DB_SETTINGS="true", EMBEDDING_DB_URL=url).start()
        worker = started(server, "worker")
        try:
            change = {"key": "max_batch_size", "value": 7}
            assert post(worker, "/settings", change).status_code == 200

            proxy.on_request, proxy.persists = cut(0, Stall), True
            wait_for(lambda: b"database does not answer" in worker.log.read_bytes(), 20, "its end")
            began = time.monotonic()
            refused = post(worker, "/settings", {"key": "max_batch_size", "value": 8})
            assert (refused.status_code, refused.json()["type"]) == (503, "DatabaseUnavailable")
            assert time.monotonic() - began < 15
            assert post(worker, "/embed", {"texts": ["still here?"]}).status_code == 200
            shown = requests.get(f"{worker.url}/settings", timeout=30).json()
            assert (shown["source"], shown["settings"]["max_batch_size"]) == ("database", 7)

            worker.process.terminate()
            assert worker.process.wait(30) == 0
            server.kill()
            server.start()  # the server uses the last known values
            worker = started(server, "later")
            shown = requests.get(f"{worker.url}/settings", timeout=30).json()
            assert shown["settings"]["max_batch_size"] == 7
            assert post(worker, "/embed", {"texts": ["and now?"]}).status_code == 200

            proxy.heal()
            wait_for(lambda: post(worker, "/settings", {**change, "value": 9}).status_code == 200, 30, "it")
            assert b"Reached the database again" in worker.log.read_bytes()
        finally:
            worker.process.terminate()
            worker.process.wait(30)
            proxy.close()
        assert server.stop() == 0
        said = b"".join(log.read_bytes() for log in tmp_path.glob("*.log"))
        assert b"Traceback" not in said, said.decode()
