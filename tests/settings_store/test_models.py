"""Models as rows of the database, over a real worker and a real model server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from embedshare.database.database import Database
from embedshare.database.tables import ModelRow
from embedshare.settings_store.repository import SettingsRepository
from tests.engine import small_models
from tests.processes import MODEL, OTHER_MODEL, ModelServer, wait_for
from tests.web.conftest import Worker

SETTINGS = {"EMBEDDING_USE_DB_SETTINGS": "true", "EMBEDDING_RUNTIME": "torch"}
FIRST: dict[str, Any] = {"id": "first", "name": MODEL, "preload": True}
SECOND: dict[str, Any] = {"id": "second", "name": str(OTHER_MODEL)}


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StaticEmbedding, with vectors of other dimensions."""
    return small_models.FAMILIES["StaticEmbedding"][0](tmp_path_factory.mktemp("static"))


@pytest.fixture(scope="module")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    running = ModelServer(tmp_path_factory.mktemp("server"), **SETTINGS).start()
    yield running
    assert running.stop() == 0, running.said().decode()


@pytest.fixture(scope="module")
def worker(model_server: ModelServer) -> Iterator[Worker]:
    running = Worker(model_server, model_server.folder / "worker.log")
    try:
        wait_for(lambda: b"ready: http" in running.log.read_bytes(), 60, "the ready line")
        yield running
    finally:
        running.process.terminate()
        assert running.process.wait(30) == 0, running.log.read_text()
    assert "Traceback" not in running.log.read_text(), running.log.read_text()


@pytest.fixture
def store(model_server: ModelServer) -> Iterator[SettingsRepository]:
    with closing(Database.open(model_server.settings(), model_server.folder)) as database:
        yield SettingsRepository(database)


def post(worker: Worker, row: dict[str, Any]) -> requests.Response:
    return requests.post(f"{worker.url}/settings/models", json=row, timeout=120)


def put(worker: Worker, *rows: dict[str, Any]) -> requests.Response:
    return requests.put(f"{worker.url}/settings/models", json={"models": rows}, timeout=120)


def stored(worker: Worker) -> Any:
    return requests.get(f"{worker.url}/settings/models", timeout=30).json()["models"]


def served(server: ModelServer) -> dict[str, str]:
    with server.client(EMBEDDING_FALLBACK="none") as client:
        return {one["id"]: one["name"] for one in client.models()}


def dimension(worker: Worker, model: str) -> int | str:
    body = {"model": model, "input": "one text"}
    answer = requests.post(f"{worker.url}/v1/embeddings", json=body, timeout=60)
    if answer.status_code != 200:
        return str(answer.json()["error"]["code"] or answer.status_code)
    return len(answer.json()["data"][0]["embedding"])


def test_rows_name_the_models_and_without_one_the_settings_do(
    worker: Worker, model_server: ModelServer, static: Path
) -> None:
    assert stored(worker) == []
    answer = put(worker, FIRST, SECOND)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["models"], answer.json()["source"]) == ([FIRST, SECOND], "database")
    added = {"id": "org/static", "name": str(static), "aliases": ["tiny"], "dimensions": 32}
    assert post(worker, added).json()["models"] == [FIRST, SECOND, added]
    assert served(model_server) == {"first": MODEL, "second": str(OTHER_MODEL), "org/static": str(static)}
    wait_for(lambda: dimension(worker, "tiny") == 32, 10, "the new model's name in the worker")
    assert dimension(worker, "second") == 384
    gone = requests.delete(f"{worker.url}/settings/models/org/static", timeout=60)
    assert gone.json()["models"] == [FIRST, SECOND]
    wait_for(lambda: dimension(worker, "tiny") == "model_not_found", 10, "the end of its name")
    assert put(worker).json()["models"] == []
    assert served(model_server) == {MODEL: MODEL}
    changes = requests.get(f"{worker.url}/settings/audit?limit=2", timeout=30).json()["changes"]
    assert {(one["key"], one["action"], one["changed_by"]) for one in changes} == {
        ("models/first", "delete", "127.0.0.1"),
        ("models/second", "delete", "127.0.0.1"),
    }


def test_what_is_not_valid_or_cannot_be_served_is_refused_and_not_stored(
    worker: Worker, model_server: ModelServer, static: Path
) -> None:
    put(worker, FIRST)
    wrong = [
        ({"id": "bad", "preload": True, "name": "no-such-model"}, "no weights for 'no-such-model'"),
        ({"id": "bad", "preload": True, "name": str(static), "dimensions": 7}, "has 32 dimensions"),
        ({"id": "bad", "runtime": "fast"}, "models/bad: runtime is 'fast'; allowed: "),
        ({"id": "bad", "aliases": ["first"]}, "models/bad: the name is 'first'; allowed: each id"),
    ]  # fmt: skip
    for row, says in wrong:
        answer = post(worker, row)
        assert (answer.status_code, answer.json()["type"]) == (422, "InvalidSetting"), answer.text
        assert says in answer.json()["error"]
        assert (stored(worker), served(model_server)) == ([FIRST], {"first": MODEL})
    answer = post(worker, {"id": "bad", "colour": "red"})
    assert answer.status_code == 400
    assert "colour" in answer.json()["error"]
    answer = requests.delete(f"{worker.url}/settings/models/nowhere", timeout=30)
    assert (answer.status_code, answer.json()["type"]) == (404, "UnknownModel")


def test_while_rows_name_the_models_no_setting_and_no_swap_does(
    worker: Worker, model_server: ModelServer, static: Path
) -> None:
    from embedshare.errors import SwapRefused

    put(worker, FIRST)
    asked = {"key": "model_name", "value": str(static)}
    answer = requests.post(f"{worker.url}/settings", json=asked, timeout=30)
    assert answer.status_code == 422, answer.text
    assert "change them with POST /settings/models" in answer.json()["error"]
    with model_server.client() as client, pytest.raises(SwapRefused, match="POST /settings/models"):
        client.swap_model(str(static))


def test_rows_that_an_operator_writes_are_followed_or_rolled_back_with_the_reason(
    worker: Worker, model_server: ModelServer, store: SettingsRepository, static: Path
) -> None:
    put(worker, FIRST)

    def in_sql(position: int, fields: str) -> None:
        with store.database.write() as session:
            session.merge(ModelRow(position=position, id="by hand", fields=fields, updated_by="an operator"))

    in_sql(7, json.dumps({"name": str(static), "preload": "true"}))
    wait_for(lambda: "by hand" in served(model_server), 20, "the operator's model")
    in_sql(7, json.dumps({"name": str(static), "preload": "maybe"}))
    wait_for(lambda: store.audit(1)[0].action == "rolled back", 20, "the rollback")
    assert store.audit(1)[0].reason == "models/by hand: preload is 'maybe'; allowed: true or false"
    assert store.read().models[1]["preload"] == "true"
    assert served(model_server) == {"first": MODEL, "by hand": str(static)}


def test_a_change_that_its_worker_did_not_store_is_undone(worker: Worker, model_server: ModelServer) -> None:
    put(worker, FIRST)
    version = requests.get(f"{worker.url}/settings/models", timeout=30).json()["version"]
    with model_server.client() as client:
        client.set_models([FIRST, SECOND], version)  # and here the worker ends
    assert served(model_server) == {"first": MODEL, "second": str(OTHER_MODEL)}
    wait_for(lambda: served(model_server) == {"first": MODEL}, 20, "the models of the database")


def test_a_server_that_starts_takes_the_rows_even_if_the_default_does_not_load(
    worker: Worker, model_server: ModelServer, store: SettingsRepository
) -> None:
    put(worker, FIRST, SECOND)
    model_server.kill()
    broken = {"id": "broken", "name": "/nowhere", "preload": True, "default": True}
    store.change_models([FIRST, SECOND, broken], "an operator")
    model_server.start()
    assert set(served(model_server)) == {"first", "second", "broken"}
    assert dimension(worker, "second") == 384
    assert requests.delete(f"{worker.url}/settings/models/broken", timeout=60).status_code == 200
    assert set(served(model_server)) == {"first", "second"}
    model_server.kill()
    store.change_models([{"id": "first", "colour": "red"}], "an operator")
    model_server.start()
    assert served(model_server) == {MODEL: MODEL}
    time.sleep(1.2)  # two more readings
    assert store.read().models == ({"id": "first", "colour": "red"},)  # kept to be corrected
    assert put(worker, FIRST).status_code == 200
    assert served(model_server) == {"first": MODEL}
