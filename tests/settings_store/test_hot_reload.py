"""Settings in a database, with real workers and a real model server. A change applies everywhere within two
seconds and fails no call. It is kept only if it could be applied."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from embedshare.database.database import Database
from embedshare.database.tables import Setting
from embedshare.settings_store.repository import SettingsRepository
from tests.processes import MODEL, ModelServer, free_port, wait_for
from tests.web.conftest import Worker

#: A change must apply in every process within this time.
WITHIN_S = 2.0
#: torch, for which a server that loads several models converts none of them.
SETTINGS = {"EMBEDDING_USE_DB_SETTINGS": "true", "EMBEDDING_RUNTIME": "torch"}


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The servers' model without the step that normalizes vectors to length 1."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(MODEL, device="cpu")
    folder = tmp_path_factory.mktemp("models") / "plain"
    SentenceTransformer(modules=[model[0], model[1]], device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="module")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    running = ModelServer(tmp_path_factory.mktemp("server"), **SETTINGS).start()
    yield running
    assert running.stop() == 0, running.said().decode()


@pytest.fixture(scope="module")
def workers(model_server: ModelServer) -> Iterator[list[Worker]]:
    running = [Worker(model_server, model_server.folder / f"worker-{n}.log") for n in (1, 2)]
    try:
        for worker in running:
            wait_for(lambda worker=worker: b"ready: http" in worker.log.read_bytes(), 60, "the ready line")
        yield running
    finally:
        for worker in running:
            worker.process.terminate()
        for worker in running:
            assert worker.process.wait(30) == 0, worker.log.read_text()
    for worker in running:
        assert "Traceback" not in worker.log.read_text(), worker.log.read_text()


@pytest.fixture
def store(model_server: ModelServer) -> Iterator[SettingsRepository]:
    database = Database.open(model_server.settings(), model_server.folder)
    with closing(database):
        yield SettingsRepository(database)


def post(worker: Worker, key: str, value: Any) -> requests.Response:
    return requests.post(f"{worker.url}/settings", json={"key": key, "value": value}, timeout=120)


def delete(worker: Worker, key: str) -> requests.Response:
    return requests.delete(f"{worker.url}/settings/{key}", timeout=120)


def settings(worker: Worker) -> Any:
    return requests.get(f"{worker.url}/settings", timeout=30).json()["settings"]


def length(worker: Worker) -> float:
    answer = requests.post(f"{worker.url}/embed", json={"texts": ["how long?"]}, timeout=30)
    assert answer.status_code == 200, answer.text
    return float(np.linalg.norm(answer.json()["embeddings"][0]))


def served(server: ModelServer) -> str:
    with server.client(EMBEDDING_FALLBACK="none") as client:
        return str(client.stats()["model"])


def largest_batch(server: ModelServer) -> list[int]:
    """Return the batches by number of texts: the counts of the histogram's buckets."""
    with server.client(EMBEDDING_FALLBACK="none") as client:
        return list(client.stats()["histograms"]["batch_sequences"]["counts"])


def in_sql(store: SettingsRepository, key: str, raw: str) -> None:
    """Write a value as an operator would in SQL, without this program."""
    with store.database.write() as session:
        session.merge(Setting(key=key, raw=raw, updated_by="an operator"))


class Load:
    """Callers that send requests to both workers without pause."""

    def __init__(self, workers: list[Worker]) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(len(workers))
        self._done = [self._pool.submit(self._ask, worker) for worker in workers]

    def _ask(self, worker: Worker) -> tuple[int, list[str]]:
        count, failures = 0, []
        with requests.Session() as session:
            while not self._stop.is_set():
                texts = [f"question {count} {number}" for number in range(4)]
                answer = session.post(f"{worker.url}/embed", json={"texts": texts}, timeout=60)
                count += 1
                if answer.status_code != 200:
                    failures.append(answer.text)
        return count, failures

    def end(self) -> int:
        """Stop the callers; return the number of answered calls, and fail if one failed."""
        self._stop.set()
        results = [done.result() for done in self._done]
        self._pool.shutdown()
        assert [failures for _, failures in results if failures] == []
        return sum(count for count, _ in results)


def test_the_settings_of_a_database_are_shown_with_what_can_be_set(workers: list[Worker]) -> None:
    answer = requests.get(f"{workers[0].url}/settings", timeout=30).json()
    assert answer["source"] == "database"
    assert answer["supported_keys"] == [
        "model_name", "device", "model_cache_dir", "normalize_embeddings", "max_batch_size", "host", "port",
        "cors_origins",
    ]  # fmt: skip
    assert set(answer["settings"]) == set(answer["supported_keys"])
    assert answer["settings"]["model_name"] == MODEL
    assert answer["settings"]["port"] == workers[0].port


def test_model_batches_device_and_normalizing_change_under_load_and_no_call_fails(
    model_server: ModelServer, workers: list[Worker], plain_model: Path
) -> None:
    first, second = workers
    load = Load(workers)
    answer = post(first, "model_name", str(plain_model))
    assert answer.status_code == 200, answer.text
    assert answer.json()["settings"]["model_name"] == served(model_server) == str(plain_model)
    wait_for(lambda: settings(second)["model_name"] == str(plain_model), WITHIN_S, "the other worker's model")
    assert abs(length(second) - 1) > 0.01

    assert post(first, "normalize_embeddings", True).json()["settings"]["normalize_embeddings"] is True
    wait_for(lambda: abs(length(second) - 1) < 1e-3, WITHIN_S, "vectors of length 1 from the other worker")
    assert post(second, "normalize_embeddings", "false").json()["settings"]["normalize_embeddings"] is False
    wait_for(lambda: abs(length(first) - 1) > 0.01, WITHIN_S, "vectors as they are from the first worker")

    assert post(first, "max_batch_size", 1).json()["settings"]["max_batch_size"] == 1
    time.sleep(0.2)
    before = largest_batch(model_server)
    wait_for(lambda: largest_batch(model_server)[0] > before[0] + 20, what="batches of one text")
    grown = [after - earlier for after, earlier in zip(largest_batch(model_server), before, strict=True)]
    assert sum(grown[1:]) == 0  # each of the call's four texts is a batch
    assert delete(first, "max_batch_size").json()["settings"]["max_batch_size"] == 0

    swaps = model_server.said().count(b"Swapped ")
    assert post(second, "device", "cpu").status_code == 200  # auto is the CPU here, so nothing is loaded
    assert model_server.said().count(b"Swapped ") == swaps
    bulk = {"settings": {"model_name": MODEL, "device": "auto", "cors_origins": ["https://a.example"]}}
    answer = requests.post(f"{second.url}/settings/bulk", json=bulk, timeout=120)
    assert answer.status_code == 200, answer.text
    assert served(model_server) == MODEL
    wait_for(lambda: settings(first)["cors_origins"] == ["https://a.example"], WITHIN_S, "the bulk change")
    calls = load.end()
    print(f"\n{calls} calls through two workers during seven changes of the settings; none failed")
    assert calls > 20


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model_name", "no-such-model", "no weights for 'no-such-model'"),
        ("device", "gpu", "auto, cpu, cuda"),
        ("device", 1, "allowed: text"),
        ("normalize_embeddings", 1, "true or false"),
        ("max_batch_size", -1, "a whole number from 0 to"),
        ("max_batch_size", True, "a whole number"),
        ("port", 0, "a whole number from 1 to 65535"),
        ("cors_origins", ["nonsense"], "comma-separated origins, as https://app.example"),
        ("cors_origins", [1], "a list of texts"),
    ],
)
def test_what_is_no_value_or_cannot_be_applied_is_refused_and_not_kept(
    model_server: ModelServer, workers: list[Worker], key: str, value: Any, says: str
) -> None:
    before = requests.get(f"{workers[0].url}/settings", timeout=30).json()
    answer = post(workers[0], key, value)
    assert (answer.status_code, answer.json()["type"]) == (422, "InvalidSetting"), answer.text
    assert says in answer.json()["error"]
    assert requests.get(f"{workers[0].url}/settings", timeout=30).json() == before
    assert served(model_server) == MODEL


def test_of_a_bulk_change_nothing_is_kept_where_one_value_cannot_be_applied(workers: list[Worker]) -> None:
    before = requests.get(f"{workers[0].url}/settings", timeout=30).json()
    for bad in ({"port": 0}, {"model_name": "no-such-model"}, {"device": "cuda:99"}, {"host": "203.0.113.9"}):
        bulk = {"settings": {"normalize_embeddings": True, "max_batch_size": 3, **bad}}
        answer = requests.post(f"{workers[0].url}/settings/bulk", json=bulk, timeout=60)
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"].startswith(f"{next(iter(bad))} ")  # the error names no valid key
        assert requests.get(f"{workers[0].url}/settings", timeout=30).json() == before


def test_the_model_s_configuration_is_changed_by_the_name_that_another_service_has_for_it(
    workers: list[Worker], model_server: ModelServer
) -> None:
    url = f"{workers[0].url}/update-model-config"
    answer = requests.post(url, json={"model_name": MODEL, "max_batch_size": 7}, timeout=60)
    assert answer.json() == {"success": True, "message": f"the model is {MODEL}", "model_name": MODEL}
    shown = requests.get(f"{workers[0].url}/settings", timeout=30).json()["settings"]
    assert (shown["model_name"], shown["max_batch_size"], served(model_server)) == (MODEL, 7, MODEL)
    assert delete(workers[0], "max_batch_size").json()["settings"]["max_batch_size"] == 0
    wrong = requests.post(url, json={"model_name": "no-such-model"}, timeout=60)
    assert (wrong.status_code, served(model_server)) == (422, MODEL)


def test_a_key_that_there_is_not_is_404(workers: list[Worker]) -> None:
    before = requests.get(f"{workers[0].url}/settings", timeout=30).json()
    bulk = {"settings": {"normalize_embeddings": True, "authkey": "x"}}
    for answer in (
        delete(workers[0], "authkey"),
        post(workers[0], "authkey", "x"),
        requests.post(f"{workers[0].url}/settings/bulk", json=bulk, timeout=60),
    ):
        assert (answer.status_code, answer.json()["type"]) == (404, "UnknownSetting")
        assert (
            "unknown setting 'authkey'; the ones that can be changed are model_name, device"
            in answer.json()["error"]
        )
    assert requests.get(f"{workers[0].url}/settings", timeout=30).json() == before


def test_what_is_changed_in_the_database_itself_is_followed_or_rolled_back_with_the_reason(
    model_server: ModelServer, workers: list[Worker], plain_model: Path, store: SettingsRepository
) -> None:
    in_sql(store, "model_name", json.dumps(str(plain_model)))
    wait_for(lambda: served(model_server) == str(plain_model), 60, "the model that the database names")
    in_sql(store, "model_name", '"no-such-model"')
    wait_for(lambda: store.read().values["model_name"] == str(plain_model), 30, "the rollback")
    in_sql(store, "max_batch_size", "many")
    wait_for(lambda: "max_batch_size" not in store.read().invalid, 10, "the rollback")
    latest = requests.get(f"{workers[0].url}/settings/audit?limit=2", timeout=30).json()["changes"]
    assert [(each["action"], each["key"], each["changed_by"]) for each in latest] == [
        ("rolled back", "max_batch_size", "model server"),
        ("rolled back", "model_name", "model server"),
    ]
    assert (latest[1]["old"], latest[1]["new"]) == ("no-such-model", str(plain_model))
    assert "no weights for 'no-such-model'" in latest[1]["reason"]
    assert served(model_server) == str(plain_model)
    assert post(workers[0], "model_name", MODEL).status_code == 200


def test_two_changes_of_the_model_at_once_end_with_one_of_them_everywhere(
    model_server: ModelServer, workers: list[Worker], plain_model: Path, store: SettingsRepository
) -> None:
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            names = [MODEL, str(plain_model)]
            answers = list(
                pool.map(lambda pair: post(pair[0], "model_name", pair[1]), zip(workers, names, strict=True))
            )
        assert {answer.status_code for answer in answers} <= {200, 409}
        assert 200 in {answer.status_code for answer in answers}
        kept = store.read().values["model_name"]
        assert served(model_server) == kept
        wait_for(
            lambda kept=kept: [settings(w)["model_name"] for w in workers] == [kept] * 2, WITHIN_S, "both"
        )
    time.sleep(1.2)  # two more polls
    assert served(model_server) == store.read().values["model_name"] == kept


def test_a_swap_past_the_database_is_refused(model_server: ModelServer, plain_model: Path) -> None:
    from embedshare.errors import SwapRefused

    with model_server.client() as client, pytest.raises(SwapRefused, match="POST /settings"):
        client.swap_model(str(plain_model))


def test_every_change_is_audited_with_who_made_it(workers: list[Worker]) -> None:
    post(workers[0], "normalize_embeddings", True)
    post(workers[0], "normalize_embeddings", True)  # the value is the current one
    delete(workers[0], "normalize_embeddings")
    changes = requests.get(f"{workers[1].url}/settings/audit", timeout=30).json()["changes"]
    latest = [(each["action"], each["key"], each["old"], each["new"]) for each in changes[:2]]
    assert latest[0] == ("delete", "normalize_embeddings", True, None)
    assert latest[1][:2] == ("set", "normalize_embeddings")
    assert changes[0]["changed_by"] == "127.0.0.1"
    assert abs(time.time() - _seconds(changes[0]["changed_at"])) < 60
    assert requests.get(f"{workers[0].url}/settings/audit?limit=0", timeout=30).status_code == 400


def test_a_worker_without_a_supervisor_takes_a_new_port_when_it_starts_again(
    model_server: ModelServer, workers: list[Worker]
) -> None:
    new = free_port()
    answer = post(workers[0], "port", new)
    assert (answer.status_code, answer.json()["settings"]["port"]) == (200, new)
    assert answer.json()["notes"] == {"port": "kept; takes effect at the next restart"}
    wait_for(lambda: settings(workers[1])["port"] == new, WITHIN_S, "the new port's news where it was")
    again = Worker(model_server, model_server.folder / "again.log")
    try:
        ready = f"ready: http://127.0.0.1:{new}".encode()
        wait_for(lambda: ready in again.log.read_bytes(), 60, "the start at the new port")
        own, again.url = again.port, f"http://127.0.0.1:{new}"
        assert delete(again, "port").json()["settings"]["port"] == own
    finally:
        again.process.terminate()
        assert again.process.wait(30) == 0, again.log.read_text()


def test_a_server_that_starts_takes_the_model_of_the_database(
    model_server: ModelServer, workers: list[Worker], plain_model: Path
) -> None:
    assert post(workers[0], "model_name", str(plain_model)).status_code == 200
    model_server.kill()
    model_server.start()
    assert served(model_server) == str(plain_model)
    assert not list(model_server.folder.glob("model-*.json"))


def _seconds(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
