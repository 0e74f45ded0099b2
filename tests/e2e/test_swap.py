"""The running server swaps its model: no call fails, no vectors mix, and a failed swap changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import (
    EmbedshareError,
    EngineFailed,
    ModelMismatch,
    ModelNotFound,
    SwapRefused,
    UnsupportedModel,
    WeightsCorrupted,
)
from tests.engine.small_models import bert, pooled, saved
from tests.processes import MODEL, ModelServer, add_own_code, copy_converted, wait_for

TEXTS = [f"what a worker asks, number {number}" for number in range(8)]

#: Embed without pause until the input ends; report the outcomes and the smallest cosine for each model.
WORKER = """
import json, os, sys, threading
import numpy as np
from embeddingClient import EmbeddingClient
from embedshare.errors import EmbedshareError

texts, folder = json.loads(sys.argv[1]), sys.argv[2]
references = {name: np.load(f"{folder}/{name}.npy") for name in ("first", "other")}
names = {os.environ["EMBEDDING_MODEL_NAME"]: "first"}
answers, failures, worst, unreported = {"first": 0, "other": 0}, [], 1.0, 0
stop, lock = threading.Event(), threading.Lock()

def work(client, number):
    global worst, unreported
    over = False
    while not over:
        over = stop.is_set()  # one call more, after all that the test has done
        number = (number + 1) % len(texts)
        view = client._view
        before = names.get(view()["model"], "other") if view()["model"] else None
        try:
            vector = client.encode(texts[number])
        except EmbedshareError as error:
            failures.append(type(error).__name__)
            if len(failures) > 20:
                return
            continue
        after = names.get(view()["model"], "other")
        cosines = {name: float(rows[number] @ vector) for name, rows in references.items()}
        model = max(cosines, key=cosines.get)
        with lock:
            answers[model] += 1
            worst = min(worst, cosines[model])
            unreported += model not in (before, after)

with EmbeddingClient() as client:
    threads = [threading.Thread(target=work, args=(client, number)) for number in range(3)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
print(json.dumps([answers, failures, worst, unreported]))
"""


@pytest.fixture(scope="module")
def references(
    tmp_path_factory: pytest.TempPathFactory, reference: Any, other_model: Path
) -> dict[str, np.ndarray]:
    from sentence_transformers import SentenceTransformer

    other = SentenceTransformer(str(other_model), device="cpu")
    return {"first": reference.encode(TEXTS), "other": other.encode(TEXTS)}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ModelServer]:
    running = ModelServer(tmp_path).start()
    yield running
    assert running.stop() == 0, running.said().decode()


class Workers:
    """Processes that each embed without pause in three threads."""

    def __init__(
        self, count: int, server: ModelServer, references: dict[str, np.ndarray], on_change: str
    ) -> None:
        for name, rows in references.items():
            np.save(server.folder / f"{name}.npy", rows)
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, json.dumps(TEXTS), str(server.folder)],
                env=server.environment(EMBEDDING_FALLBACK="none", EMBEDDING_ON_MODEL_CHANGE=on_change),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for _ in range(count)
        ]  # fmt: skip

    def end(self) -> list[tuple[dict[str, int], list[str], float, int]]:
        results = []
        for process in self.processes:
            said, log = process.communicate(timeout=60)
            assert process.returncode == 0, log
            results.append(tuple(json.loads(said)))
        return results  # type: ignore[return-value]


def served(client: EmbeddingClient) -> int:
    return int(client.stats()["sequences"])


def model_of(client: EmbeddingClient, references: dict[str, np.ndarray]) -> str:
    """Return the name of the model whose vector the client gets."""
    vector = client.encode(TEXTS[0])
    name = max(references, key=lambda each: float(references[each][0] @ vector))
    assert float(references[name][0] @ vector) > 0.9995
    return name


def test_a_swap_under_load_fails_no_call_and_mixes_nothing_for_those_who_follow(
    server: ModelServer, other_model: Path, references: dict[str, np.ndarray]
) -> None:
    workers = Workers(3, server, references, "follow")
    with server.client(EMBEDDING_FALLBACK="none", EMBEDDING_ON_MODEL_CHANGE="follow") as observer:
        wait_for(lambda: served(observer) > 500, what="the load")
        swapped = observer.swap_model(str(other_model))
        assert (swapped["model_name"], swapped["device"]) == (str(other_model), "cpu")
        wait_for(lambda: served(observer) > 500, what="the load on the new model")
        observer.swap_model(MODEL)
        wait_for(lambda: served(observer) > 500, what="the load on the first model again")
        assert observer.stats()["swaps"] == 2
    results = workers.end()
    for answers, failures, worst, unreported in results:
        assert failures == []
        assert answers["first"] > 0
        assert answers["other"] > 0
        assert worst > 0.9995
        assert unreported == 0
    print(f"\n{[answers for answers, *_ in results]} calls by model in 3 workers of 3 threads; none failed")
    log = server.said().decode()
    assert log.count("for a swap (") == log.count("Swapped ") == 2
    # a model that is compiled to its end first, as OpenVINO's must be, is unloaded a little later
    wait_for(lambda: server.said().decode().count("Unloaded ") == 2, what="the end of both replaced models")


def test_those_who_refuse_get_model_mismatch_after_the_swap_and_no_other_error(
    server: ModelServer, other_model: Path, references: dict[str, np.ndarray]
) -> None:
    workers = Workers(2, server, references, "refuse")
    with server.client(EMBEDDING_FALLBACK="none") as observer:
        wait_for(lambda: served(observer) > 200, what="the load")
        observer.swap_model(str(other_model))
        with pytest.raises(ModelMismatch):
            observer.encode("text")
        assert observer.health()["state"] == "refused"
        for answers, failures, worst, unreported in workers.end():
            assert answers["other"] == unreported == 0
            assert answers["first"] > 0
            assert set(failures) == {"ModelMismatch"}
            assert worst > 0.9995
        observer.swap_model(MODEL)  # a client that refuses may still swap, and then gets answers again
        assert model_of(observer, references) == "first"


#: A server that takes 0.2 s more for each batch, so that a long call outlasts two swaps.
SLOWLY = """
import sys, time
import modelServer
from embedshare.engine.runtimes.openvino import OpenVinoRuntime
run = OpenVinoRuntime.run
OpenVinoRuntime.run = lambda self, sequences: (time.sleep(0.2), run(self, sequences))[1]
sys.exit(modelServer.main())
"""


def test_a_long_call_during_swaps_there_and_back_is_of_one_model(
    tmp_path: Path, other_model: Path, reference: Any
) -> None:
    server = ModelServer(tmp_path, MAX_CONCURRENT_OPERATIONS="1")
    server.command = [sys.executable, "-c", SLOWLY]
    server.start()
    texts = [f"paragraph {number} " + "word " * 20 for number in range(4_000)]
    result: list[np.ndarray] = []
    with server.client(EMBEDDING_FALLBACK="none", EMBEDDING_ON_MODEL_CHANGE="follow") as client:
        bulk = threading.Thread(target=lambda: result.append(client.encode(texts)))
        bulk.start()
        with server.client(EMBEDDING_FALLBACK="none", EMBEDDING_ON_MODEL_CHANGE="follow") as observer:
            wait_for(lambda: served(observer) > 500, what="the bulk call to be under way")
            assert bulk.is_alive()
            observer.swap_model(str(other_model))
            wait_for(lambda: served(observer) > 0, what="a piece of the other model")
            assert bulk.is_alive()
            observer.swap_model(MODEL)
            assert bulk.is_alive()
        bulk.join(200)
    assert server.stop() == 0
    picked = [0, 511, 512, 1023, 1024, 1536, 2048, 3000, 3999]
    expected = reference.encode([texts[number] for number in picked])
    assert (result[0][picked] * expected).sum(1).min() > 0.9995


def refusal(
    client: EmbeddingClient, model_name: str, error: type[EmbedshareError], says: str
) -> EmbedshareError:
    with pytest.raises(error, match=says) as caught:
        client.swap_model(model_name, timeout=120)
    return caught.value


def test_what_does_not_load_changes_nothing_and_says_why(
    server: ModelServer, other_model: Path, references: dict[str, np.ndarray], tmp_path: Path
) -> None:
    corrupt = tmp_path / "corrupt"
    shutil.copytree(other_model, corrupt)
    (corrupt / "model.safetensors").write_bytes(b"\xff" * 4096)
    with server.client(EMBEDDING_FALLBACK="none") as client:
        before = client.health()["identity"]
        refusal(client, "no-such-model", ModelNotFound, "no weights for 'no-such-model'")
        refusal(client, str(tmp_path), ModelNotFound, "neither modules.json")
        refusal(client, str(corrupt), WeightsCorrupted, str(corrupt))
        assert client.health()["identity"] == before
        assert model_of(client, references) == "first"
        stats = client.stats()
        assert (stats["swaps"], stats["failed_swaps"]) == (0, 3)
    assert server.said().decode().count("keeps serving: ") == 3
    assert not list(tmp_path.glob("model-*.json"))


def test_trust_in_the_configured_model_s_code_does_not_pass_to_one_that_is_swapped_in(
    tmp_path: Path, other_model: Path, references: dict[str, np.ndarray]
) -> None:
    coded = tmp_path / "coded"
    shutil.copytree(other_model, coded)
    ran = add_own_code(coded)
    what_to_set = "add its name to EMBEDDING_TRUST_REMOTE_CODE"
    server = ModelServer(tmp_path, EMBEDDING_TRUST_REMOTE_CODE="true").start()
    with server.client(EMBEDDING_FALLBACK="none") as client:
        refusal(client, str(coded), UnsupportedModel, what_to_set)
        assert model_of(client, references) == "first"
    assert not ran.exists()
    assert server.stop() == 0


def converter_of(server: ModelServer) -> psutil.Process | None:
    assert server.process is not None
    for child in psutil.Process(server.process.pid).children():
        try:
            if "embedshare.conversion" in child.cmdline():
                return child
        except psutil.Error:  # the child is ending
            pass
    return None


def attempt(call: Callable[[], Any], results: list[Any]) -> threading.Thread:
    def run() -> None:
        try:
            results.append(call())
        except EmbedshareError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_conversion_that_is_killed_changes_nothing_and_a_second_swap_meanwhile_is_refused(
    tmp_path: Path, other_model: Path, references: dict[str, np.ndarray]
) -> None:
    graphs = tmp_path / "cache"
    server = ModelServer(tmp_path, EMBEDDING_CACHE_DIR=str(graphs))
    copy_converted(graphs)
    results: list[Any] = []
    server.start()
    for known in (graphs / "graphs").iterdir():  # forces a conversion of the other model
        shutil.rmtree(known)
    with server.client(EMBEDDING_FALLBACK="none") as client:
        swap = attempt(lambda: client.swap_model(str(other_model)), results)
        converter = wait_for(lambda: converter_of(server), what="the conversion")
        refusal(client, str(other_model), SwapRefused, "another swap is under way")
        converter.kill()
        swap.join(60)
        assert isinstance(results[0], EngineFailed)
        assert "ended with code -9" in results[0].message
        assert model_of(client, references) == "first"
        # A swap whose caller leaves does not happen, and its conversion ends.
        with pytest.raises(EmbedshareError):
            client.swap_model(str(other_model), timeout=1.0)
        wait_for(lambda: converter_of(server) is None, what="the end of the conversion")
        assert client.stats()["swaps"] == 0
        # A server that stops does not wait for a conversion.
        swaps: list[threading.Thread] = []

        def converting() -> psutil.Process | None:
            """Request the swap again once the previous request has ended; return the conversion process."""
            if not swaps or not swaps[-1].is_alive():
                swaps.append(attempt(lambda: client.swap_model(str(other_model)), results))
            return converter_of(server)

        converter = wait_for(converting, what="the conversion")
        assert server.stop() == 0
        swaps[-1].join(60)
        assert isinstance(results[-1], EmbedshareError)
        assert "under way" not in results[-1].message
        assert not converter.is_running()


def test_a_model_that_was_never_converted_is_converted_by_the_swap(
    server: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = tmp_path_factory.mktemp("tiny")
    model = saved(model, pooled(bert(model)))
    with server.client(EMBEDDING_FALLBACK="none", EMBEDDING_ON_MODEL_CHANGE="follow") as client:
        swapped = client.swap_model(str(model))
        assert (swapped["model_name"], client.stats()["runtime"]) == (str(model), "openvino")
        from sentence_transformers import SentenceTransformer

        expected = SentenceTransformer(str(model), device="cpu").encode(TEXTS)
        rows = client.encode(TEXTS)
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((rows * expected).sum(1) / lengths).min() > 0.9999  # also in bfloat16
        assert np.abs(lengths / np.linalg.norm(expected, axis=1) ** 2 - 1).max() < 0.01


def test_a_killed_server_comes_back_with_the_model_that_was_swapped_in_until_it_is_undone(
    tmp_path: Path, other_model: Path, references: dict[str, np.ndarray]
) -> None:
    server = ModelServer(tmp_path).start()
    note = tmp_path / f"model-{server.port}.json"
    follow = {"EMBEDDING_FALLBACK": "none", "EMBEDDING_ON_MODEL_CHANGE": "follow"}
    with server.client(**follow) as client:
        client.swap_model(str(other_model))
        assert json.loads(note.read_text())["swapped_in"] == str(other_model)
        assert note.stat().st_mode & 0o077 == 0
        server.kill()
        at = len(server.said())
        server.start()
        assert model_of(client, references) == "other"
        assert f"Serving {other_model}, swapped in at" in server.said(at).decode()
        client.swap_model(MODEL)
        assert not note.exists()
        client.swap_model(str(other_model))
        server.kill()

        moved = other_model.with_name("elsewhere")
        other_model.rename(moved)  # this model cannot load, so the server logs it and serves the first
        try:
            at = len(server.said())
            server.start()
            assert model_of(client, references) == "first"
            assert f"Could not load {other_model}; serving {MODEL} instead" in server.said(at).decode()
        finally:
            moved.rename(other_model)
        assert server.stop() == 0

        (tmp_path / "same").symlink_to(MODEL)
        server.given["EMBEDDING_MODEL_NAME"] = str(tmp_path / "same")
        at = len(server.said())
        server.start()
        assert f"Ignoring the swap to {other_model} (" in server.said(at).decode()
        assert not note.exists()
        assert model_of(client, references) == "first"
        assert server.stop() == 0


def test_models_that_were_swapped_out_are_released(server: ModelServer, other_model: Path) -> None:
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    memory_mb, threads = [], []
    with server.client(EMBEDDING_FALLBACK="none", EMBEDDING_ON_MODEL_CHANGE="follow") as client:
        for _ in range(3):
            for name in (str(other_model), MODEL):
                client.swap_model(name)
                client.encode(TEXTS)
            memory_mb.append(process.memory_info().rss >> 20)
            threads.append(process.num_threads())
        assert client.stats()["swaps"] == 6
    print(f"\nafter each of 3 swaps there and back: {memory_mb} MB, {threads} threads")
    assert memory_mb[-1] < memory_mb[0] + 120  # two leaked models each time would take 300 MB or more
    assert threads[-1] <= threads[0] + 4
    wait_for(lambda: server.said().decode().count("Unloaded ") == 6)
    assert not any("torch" in path.path for path in process.memory_maps())


def test_a_follower_falls_back_to_the_model_that_was_swapped_in(
    tmp_path: Path, other_model: Path, references: dict[str, np.ndarray]
) -> None:
    server = ModelServer(tmp_path).start()
    with server.client(EMBEDDING_ON_MODEL_CHANGE="follow") as client:
        assert model_of(client, references) == "first"
        client.swap_model(str(other_model))
        assert model_of(client, references) == "other"
        server.kill()
        assert model_of(client, references) == "other"
        assert client.health()["state"] == "falling back"


def test_swaps_can_be_forbidden_and_the_present_model_is_no_swap(
    tmp_path: Path, other_model: Path, references: dict[str, np.ndarray], server: ModelServer
) -> None:
    with server.client(EMBEDDING_FALLBACK="none") as client:
        assert client.swap_model(MODEL)["identity"] == client.health()["identity"]
        assert client.stats()["swaps"] == 0
    assert "for a swap" not in server.said().decode()
    closed = ModelServer(tmp_path / "..", EMBEDDING_ALLOW_SWAP="false").start()
    with closed.client(EMBEDDING_FALLBACK="none") as client:
        refusal(client, str(other_model), SwapRefused, "EMBEDDING_ALLOW_SWAP is false")
        assert model_of(client, references) == "first"
    assert closed.stop() == 0
    with EmbeddingClient(settings=closed.settings(USE_IPC_EMBEDDING="false")) as alone:
        refusal(alone, str(other_model), SwapRefused, "uses no model server")
