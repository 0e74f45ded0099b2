"""The server's cache of vectors, over real servers and clients."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from embeddingClient import EmbeddingClient
from embedshare import platforms
from embedshare.errors import InvalidInput, TooLarge, UnknownModel
from embedshare.ipc import codec
from tests.processes import MODEL, OTHER_MODEL, ROOT, ModelServer, convert_once, environment, wait_for
from tests.redis_server import RedisServer, needs_redis
from tests.settings_store.test_repository import SERVERS, own_database
from tests.web.conftest import Worker

TEXTS = [f"text number {number} of a list" for number in range(40)]
CACHED = {"EMBEDDING_VECTOR_CACHE_BYTES": str(8 << 20)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    convert_once(str(OTHER_MODEL))
    folder = tmp_path_factory.mktemp("cached")
    path = folder / "models.yaml"
    path.write_text(
        f"models:\n  local:\n  - id: first\n    name: {MODEL}\n    preload: true\n"
        f"  - id: second\n    name: {OTHER_MODEL}\n"
    )
    path.chmod(0o600)
    running = ModelServer(folder, EMBEDDING_MODELS_FILE=str(path), **CACHED)
    running.start()
    yield running
    assert running.stop() == 0, running.said().decode()


@pytest.fixture
def client(server: ModelServer) -> Iterator[EmbeddingClient]:
    with server.client(EMBEDDING_FALLBACK="none") as ours:
        ours.clear_cache(every_model=True)
        yield ours


def cache(client: EmbeddingClient) -> dict[str, Any]:
    found: dict[str, Any] = client.stats()["cache"]
    return found


def test_a_text_is_computed_once_for_all_callers_and_forms(
    server: ModelServer, client: EmbeddingClient
) -> None:
    before = cache(client)
    rows = client.encode(TEXTS)
    batches = client.stats()["batches"]
    with server.client() as other:
        assert np.array_equal(other.encode(TEXTS[::-1]), rows[::-1])
        assert np.array_equal(other.encode(TEXTS[3]), rows[3])
        unit = other.encode(TEXTS, normalize_embeddings=True, truncate_dim=64)
    expected = rows[:, :64] / np.linalg.norm(rows[:, :64], axis=1, keepdims=True)
    assert np.allclose(unit, expected, atol=1e-6)
    after = cache(client)
    assert after["misses"] - before["misses"] == len(TEXTS)
    assert after["hits"] - before["hits"] == 2 * len(TEXTS) + 1
    stats = client.stats()
    assert stats["batches"] == batches
    assert sum(stats["histograms"]["total_ms"]["counts"]) == stats["successful_requests"]


def test_a_hit_loads_no_model_and_two_models_never_share_a_vector(client: EmbeddingClient) -> None:
    second = client.of_model("second")
    rows = second.encode(TEXTS)
    assert float((rows * client.encode(TEXTS)).sum(1).max()) < 0.9
    second.manage_model("unload")
    wait_for(lambda: client.models()[1]["state"] == "standby", 20, "the end of the model")
    loads = client.models()[1]["loads"]
    assert np.array_equal(second.encode(TEXTS), rows)
    assert (client.models()[1]["state"], client.models()[1]["loads"]) == ("standby", loads)
    assert second.clear_cache() == len(TEXTS)
    assert np.allclose(second.encode(TEXTS), rows, atol=2e-3)  # loaded again; batches may be others
    assert client.models()[1]["loads"] == loads + 1


def test_a_swap_leaves_no_vector_of_before(tmp_path: Path, server: ModelServer) -> None:
    swapped = ModelServer(tmp_path, **CACHED).start()
    follow = {"EMBEDDING_FALLBACK": "none", "EMBEDDING_ON_MODEL_CHANGE": "follow"}
    with swapped.client(**follow) as one, server.client() as first:
        before = one.encode(TEXTS)
        one.swap_model(str(OTHER_MODEL))
        after = one.encode(TEXTS)
        assert float((before * after).sum(1).max()) < 0.9
        one.swap_model(MODEL)
        assert np.array_equal(one.encode(TEXTS), before)
        expected = first.encode(TEXTS)
        assert float((before * expected).sum(1).min()) > 0.9995
    assert swapped.stop() == 0


def test_callers_at_once_cost_the_model_each_new_text_once(
    server: ModelServer, client: EmbeddingClient
) -> None:
    before = cache(client)
    texts = [f"a new text {number}" for number in range(1000)]

    def encode(number: int) -> np.ndarray:
        with server.client(EMBEDDING_FALLBACK="none") as one:
            return np.asarray(one.encode(texts))

    with ThreadPoolExecutor(16) as threads:
        rows = list(threads.map(encode, range(16)))
    assert all(np.array_equal(one, rows[0]) for one in rows)
    assert cache(client)["misses"] - before["misses"] == 1000


def test_usage_and_errors_are_those_of_a_computed_text(server: ModelServer, tmp_path: Path) -> None:
    worker = Worker(server, tmp_path / "worker.log")
    try:
        wait_for(lambda: b"ready: http" in worker.log.read_bytes(), 60, "the ready line")

        def asked(body: dict[str, Any]) -> Any:
            answer = requests.post(f"{worker.url}/v1/embeddings", json={"model": "first", **body}, timeout=60)
            return answer.status_code, {key: value for key, value in answer.json().items() if key != "id"}

        for body in (
            {"input": TEXTS},
            {"input": "one"},
            {"input": [[101, 7592, 102]]},
            {"input": "long " * 900},
        ):
            assert asked(body) == asked(body)
        assert asked({"input": [[99_999_999]]})[0] == asked({"input": [[99_999_999]]})[0] == 400
    finally:
        worker.process.terminate()
        assert worker.process.wait(30) == 0


def test_texts_are_cleared_with_every_prompt_and_task(server: ModelServer, client: EmbeddingClient) -> None:
    client.encode(TEXTS)
    client.encode(TEXTS, prompt="my own: ")
    assert client.clear_cache(texts=TEXTS[:5], prompt="my own: ") == 10
    assert client.clear_cache(texts=TEXTS[:5]) == 0
    assert client.clear_cache(texts=TEXTS[5]) == 1
    assert client.clear_cache(texts=[]) == 0
    assert client.clear_cache(texts=[f"{number} of many" for number in range(2000)]) == 0
    assert client.of_model("second").clear_cache(texts=TEXTS) == 0
    before = cache(client)["misses"]
    client.encode(TEXTS)
    assert cache(client)["misses"] == before + 6
    with pytest.raises(InvalidInput, match="one model"):
        client.clear_cache(every_model=True, texts=TEXTS)
    with pytest.raises(InvalidInput, match="texts"):
        client.clear_cache(prompt="my own: ")
    with pytest.raises(TooLarge, match="9,000 texts were sent; EMBEDDING_MAX_TEXTS allows 8,192"):
        client._embedder.to_model(codec.ClearTexts(*codec.UNSENT, ["x"] * 9000), time.monotonic() + 30)
    with pytest.raises(UnknownModel):
        client.of_model("third").clear_cache(texts=TEXTS)


def written_rows(client: EmbeddingClient) -> np.ndarray:
    """The rows of TEXTS, computed and written to the database; again if it was left out for a late answer."""
    client.clear_cache()
    before = cache(client)["database"]
    rows = np.asarray(client.encode(TEXTS))

    def ended() -> dict[str, Any] | None:
        now: dict[str, Any] = cache(client)["database"]
        count = now["written"] + now["dropped"] - before["written"] - before["dropped"]
        return now if count == len(TEXTS) else None

    is_whole = wait_for(ended, 20, "the end of the writes")["dropped"] == before["dropped"]
    return rows if is_whole else written_rows(client)


@pytest.mark.parametrize("kind", ["sqlite", *SERVERS])
def test_a_server_that_was_killed_finds_its_vectors_in_the_database(tmp_path: Path, kind: str) -> None:
    with contextlib.ExitStack() as stack:
        sqlite = f"sqlite:///{tmp_path / 'vectors.db'}"
        url = sqlite if kind == "sqlite" else stack.enter_context(own_database(kind))
        given = {"EMBEDDING_VECTOR_CACHE_DATABASE": "true", "EMBEDDING_DB_URL": url, **CACHED}
        first = ModelServer(tmp_path, **given).start()
        with first.client(EMBEDDING_FALLBACK="none") as client:
            wait_for(lambda: cache(client)["database"]["connected"], 20, "the database")
            rows = written_rows(client)
            first.kill()
            first.start()
            wait_for(lambda: cache(client)["database"]["connected"], 20, "the database")
            assert np.allclose(client.encode(TEXTS), rows, atol=2e-3)
            stats = cache(client)
            # On a machine that others use a read may miss its deadline; then its texts are computed.
            is_late = stats["database"]["failures"] > 0
            assert stats["hits_by_level"]["database"] == (0 if is_late else len(TEXTS))
            assert stats["hits"] + stats["misses"] == len(TEXTS)
            assert client.clear_cache(texts=TEXTS[:5]) == 5
            first.kill()
            first.start()
            wait_for(lambda: cache(client)["database"]["connected"], 20, "the database")
            client.encode(TEXTS[:5])
            assert cache(client)["misses"] == 5
        assert first.stop() == 0


def test_the_most_asked_texts_are_embedded_again_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(
        f"models:\n  local:\n  - id: first\n    name: {MODEL}\n    preload: true\n"
        f"  - id: second\n    name: {OTHER_MODEL}\n"
    )
    path.chmod(0o600)
    given = {"EMBEDDING_MODELS_FILE": str(path), "EMBEDDING_VECTOR_CACHE_MOST_ASKED": "40", **CACHED}
    server = ModelServer(tmp_path, **given).start()
    with server.client(EMBEDDING_FALLBACK="none") as client:
        for _ in range(2):
            rows = client.encode(TEXTS)
        client.encode([f"rare {number}" for number in range(100)])
        second = client.of_model("second")
        theirs = second.encode(TEXTS[:10])
        assert server.stop() == 0
        (kept,) = tmp_path.glob("most-asked-*.json")
        assert platforms.fault_of_secret(kept.stat()) is None

        server.start()
        wait_for(lambda: cache(client)["entries"] == len(TEXTS), 30, "the texts of the loaded model")
        assert np.allclose(client.encode(TEXTS), rows, atol=2e-3)  # batches may be others
        assert (cache(client)["misses"], cache(client)["hits"]) == (0, len(TEXTS))
        assert client.models()[1]["state"] == "standby"
        second.encode("a text that loads the model")
        wait_for(lambda: cache(client)["entries"] == len(TEXTS) + 10, 30, "the texts of the other model")
        assert np.allclose(second.encode(TEXTS[:10]), theirs, atol=2e-3)
        assert cache(client)["misses"] == 0  # the text that loaded the model was not looked for

        client.clear_cache(every_model=True)
        command = [sys.executable, str(ROOT / "service_manager.py"), "cache", "warm", "--yesterday"]
        done = subprocess.run(
            command, env=environment(**server.given), capture_output=True, text=True, check=True
        )
        assert done.stdout == "embedding 51 most asked texts in the background\n"
        wait_for(lambda: cache(client)["entries"] == 51, 30, "all texts")
        assert client.warm_cache() == len(TEXTS)
        assert second.warm_cache() == 11
    assert server.stop() == 0
    assert TEXTS[0] not in server.said().decode()


def test_a_server_that_keeps_no_texts_says_so(server: ModelServer, client: EmbeddingClient) -> None:
    with pytest.raises(InvalidInput, match="EMBEDDING_VECTOR_CACHE_MOST_ASKED"):
        client.warm_cache()
    assert list(server.folder.glob("most-asked-*")) == []


@needs_redis
def test_a_server_that_was_killed_finds_its_vectors_in_redis(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    try:
        first = ModelServer(tmp_path, EMBEDDING_VECTOR_CACHE_REDIS_URL=redis.url, **CACHED).start()
        with first.client(EMBEDDING_FALLBACK="none") as client:
            rows = client.encode(TEXTS)
            wait_for(lambda: client.stats()["cache"]["redis"]["written"] == len(TEXTS), 20, "the writing")
            first.kill()
            first.start()
            assert np.array_equal(client.encode(TEXTS), rows)
            stats = cache(client)
            assert (stats["misses"], stats["redis"]["hits"]) == (0, len(TEXTS))
            redis.stop()
            assert client.encode("a text while Redis says nothing").shape == (384,)
            redis.go_on()
        assert first.stop() == 0
        assert redis.url not in first.said().decode()
    finally:
        redis.kill()


def test_operators_see_fill_and_clear_the_cache(
    server: ModelServer, client: EmbeddingClient, tmp_path: Path
) -> None:
    client.encode(TEXTS)

    def run(*arguments: str) -> Any:
        command = [sys.executable, str(ROOT / "service_manager.py"), "cache", *arguments]
        done = subprocess.run(command, env=environment(**server.given), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    stats = run("stats", "--json")
    assert stats["entries"] == len(TEXTS)
    assert 0 < stats["bytes"] <= stats["limit_bytes"] == 8 << 20
    assert "of 8 MB" in run("stats")
    file = tmp_path / "texts.txt"
    file.write_text("\n".join([*TEXTS, "", "Größe", "Größe"]) + "\n", encoding="utf-8")
    assert run("warm", str(file), "--json") == {"warmed": len(TEXTS) + 1}
    assert run("stats", "--json")["entries"] == len(TEXTS) + 1
    before = cache(client)["misses"]
    client.encode("Größe")
    assert cache(client)["misses"] == before
    file.write_text(f"{TEXTS[2]}\n", encoding="utf-8")
    assert run("clear", "--text", "Größe", "--text", TEXTS[1], "--texts", str(file), "--json") == {
        "cleared": 3
    }
    assert run("clear", "--text", TEXTS[3], "--of", "second", "--json") == {"cleared": 0}
    client.encode(["Größe", TEXTS[1], TEXTS[2], TEXTS[3]])
    assert cache(client)["misses"] == before + 3
    assert run("clear", "--of", "second", "--json") == {"cleared": 0}
    assert run("clear") == f"dropped {len(TEXTS) + 1} cached vectors\n"
    assert run("stats", "--json")["entries"] == 0
