"""A web worker process that uses the default model server."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import SRC, ModelServer, free_port, wait_for
from tests.searching import searching


class Worker:
    """`python src/app.py` on a free port, with the smallest body limit."""

    max_message_bytes = 65_536

    def __init__(self, server: ModelServer, log: Path, **more: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        settings = {"EMBEDDING_FALLBACK": "none", "PORT": str(self.port), **more}
        settings["EMBEDDING_MAX_MESSAGE_BYTES"] = str(self.max_message_bytes)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(SRC / "app.py")],
                env=server.environment(**settings), cwd=log.parent, stdout=output, stderr=output,
            )  # fmt: skip

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@pytest.fixture(scope="session")
def server(default_server: ModelServer) -> ModelServer:
    """The default model's server, whose model many of these tests name."""
    return default_server


@pytest.fixture(scope="session")
def reference(default_reference: Any) -> Any:
    return default_reference


@pytest.fixture(scope="session")
def worker(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with searching() as web:
        yield from serving(Worker(server, tmp_path_factory.mktemp("worker") / "worker.log", **web.settings))


def serving(running: Worker) -> Iterator[Worker]:
    try:
        wait_for(lambda: b"ready: http" in running.log.read_bytes(), 30, "the worker's ready line")
        yield running
    finally:
        running.process.terminate()
        said = f"{running.process.wait(30)}\n{running.log.read_text()}"
    assert said.startswith("0\n"), said
    assert "Traceback" not in said, said
