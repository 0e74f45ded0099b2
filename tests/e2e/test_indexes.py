"""Vector indexes through a real server: exact answers, and no index is lost in a failure of the server."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import (
    DeadlineExceeded,
    IndexCorrupted,
    InvalidInput,
    ModelMismatch,
    ProtocolError,
    TooLarge,
    UnknownIndex,
)
from embedshare.ipc import codec
from embedshare.telemetry.calls import Ended
from embedshare.vectors.client.handle import VectorIndex
from tests.processes import MODEL, ModelServer, wait_for
from tests.strangers import key_holder, soon

SUBJECTS = "whales bread volcanoes chess glaciers bicycles violins mushrooms bridges comets".split()  # noqa: SIM905
DOCS = [f"{subject} and what is said of them, part {part}" for part in range(5) for subject in SUBJECTS]
URLS = [f"https://example.org/{number}" for number in range(len(DOCS))]
QUERY = "a page about volcanoes"
NAME = b"n" * 16


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server with room for few and small indexes."""
    running = ModelServer(
        tmp_path_factory.mktemp("few"), EMBEDDING_MAX_INDEXES="3", EMBEDDING_MAX_INDEX_BYTES=str(1 << 20)
    ).start()
    yield running
    assert running.stop() == 0, running.said().decode()


@pytest.fixture
def few(own: ModelServer) -> Iterator[EmbeddingClient]:
    with own.client(EMBEDDING_FALLBACK="none") as client:
        yield client


def held(client: EmbeddingClient) -> dict[str, int]:
    indexes: dict[str, int] = client.stats()["indexes"]
    return indexes


@contextmanager
def counted(client: EmbeddingClient) -> Iterator[Counter[str]]:
    """The client's calls within the block, by method."""
    counts: Counter[str] = Counter()

    def count(ended: Ended) -> None:
        counts[ended.method] += 1

    client.calls.listeners.append(count)
    yield counts
    client.calls.listeners.remove(count)


@pytest.mark.long
def test_what_is_found_is_what_faiss_finds_with_sentence_transformer_s_vectors(
    model: EmbeddingClient, reference: Any
) -> None:
    index, embeddings, metadata = model.build_vector_index(DOCS, URLS)
    assert embeddings.shape == (50, 384)
    assert embeddings.dtype == np.float32
    assert (embeddings * reference.encode(DOCS)).sum(1).min() > 0.9995
    assert len(index) == 50
    exact = faiss.IndexFlatL2(384)
    exact.add(embeddings)
    scores, ids = exact.search(model.encode([QUERY]), 5)
    results = model.search_index(QUERY, index, metadata, top_k=5)
    assert [result["id"] for result in results] == ids[0].tolist()
    assert np.allclose([result["relevance_score"] for result in results], scores[0], atol=2e-3)
    assert [result["rank"] for result in results] == [1, 2, 3, 4, 5]
    assert all("volcanoes" in result["content"] for result in results)
    assert results[0]["url"] == URLS[results[0]["id"]]
    assert set(results[0]) == {
        "id", "url", "content", "full_content", "length", "relevance_score", "rank"
    }  # fmt: skip


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_other_metrics_score_likeness_the_highest_first(model: EmbeddingClient, metric: str) -> None:
    index, embeddings, metadata = model.build_vector_index(DOCS, metric=metric)
    results = model.search_index(QUERY, index, metadata)
    likeness = embeddings @ model.encode(QUERY)
    assert [result["id"] for result in results] == np.argsort(-likeness)[:3].tolist()
    assert np.allclose([r["relevance_score"] for r in results], np.sort(likeness)[::-1][:3], atol=2e-3)


def test_metadata_shows_500_characters_and_says_where_there_are_more(model: EmbeddingClient) -> None:
    _, _, metadata = model.build_vector_index(["a" * 500, "b" * 501], ["u", "v"])
    assert metadata == [
        {"id": 0, "url": "u", "content": "a" * 500, "full_content": "a" * 500, "length": 500},
        {"id": 1, "url": "v", "content": "b" * 500 + "...", "full_content": "b" * 501, "length": 501},
    ]


def test_no_documents_one_and_more_wanted_than_there_are(model: EmbeddingClient) -> None:
    index, embeddings, metadata = model.build_vector_index([], [])
    assert (len(index), embeddings.shape, metadata) == (0, (0, 384), [])
    assert model.search_index(QUERY, index, metadata) == []
    index.add(["the only one"], ["u"])
    assert [result["url"] for result in model.search_index(QUERY, index, None, top_k=3)] == ["u"]
    index, _, metadata = model.build_vector_index(DOCS)
    assert sorted(r["id"] for r in model.search_index(QUERY, index, metadata, 10**9)) == list(range(50))


@pytest.mark.parametrize(
    ("docs", "urls", "options"),
    [(["a"], ["u", "v"], {}), (["a", "b"], "uv", {}), (["a", 1], None, {}), (["a"], None, {"metric": "l3"}),
     (["a"], None, {"kind": "tree"}), ("a text", None, {}), ({"a": 1}, None, {}), (None, None, {}),
     (["a"], [None], {}), (["a"], {"u": 1}, {}), (np.array("a"), None, {}), ([["a", "b"]], None, {})],
)  # fmt: skip
def test_what_is_no_list_of_documents_is_refused_before_it_is_embedded(
    model: EmbeddingClient, docs: Any, urls: Any, options: dict[str, str]
) -> None:
    before = model.stats()["sequences"]
    with pytest.raises(InvalidInput):
        model.build_vector_index(docs, urls, **options)
    assert model.stats()["sequences"] == before


def test_documents_come_in_arrays_and_from_generators_and_urls_twice(model: EmbeddingClient) -> None:
    lists = model.build_vector_index(DOCS[:4], ["u", "u", "v", "v"])[2]
    arrays = model.build_vector_index(np.array(DOCS[:4]), np.array(["u", "u", "v", "v"]))[2]
    index, embeddings, generated = model.build_vector_index(
        (doc for doc in DOCS[:4]), (url for url in ["u", "u", "v", "v"])
    )
    assert lists == arrays == generated
    assert all(type(entry["full_content"]) is type(entry["url"]) is str for entry in arrays)
    assert index.add((doc for doc in DOCS[4:6]), iter("ab")) == [4, 5]
    assert (index.add([]), len(index), embeddings.shape) == ([], 6, (4, 384))


def test_a_search_sees_the_documents_of_one_moment(model: EmbeddingClient) -> None:
    index, _, metadata = model.build_vector_index(DOCS, URLS)
    over = threading.Event()

    def change() -> int:
        for turn in range(60):
            (new,) = index.add([f"volcanoes, page {turn}"], [str(turn)])
            index.remove([index.ids[turn % 20]])
            assert metadata[-1]["id"] == new
        over.set()
        return len(index)

    def search(given: list[dict[str, Any]] | None) -> int:
        searches = 0
        while not over.is_set():
            ids = [entry["id"] for entry in model.search_index(QUERY, index, given, 100)]
            assert len(set(ids)) == len(ids)
            assert len(ids) in (50, 51)
            searches += 1
        return searches

    with ThreadPoolExecutor(4) as threads:
        searching = [threads.submit(search, given) for given in (None, metadata, None)]
        try:
            assert threads.submit(change).result() == 50
        finally:
            over.set()
        assert all(one.result() > 2 for one in searching)


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "3", None, True])
def test_a_top_k_that_is_none_is_refused(model: EmbeddingClient, top_k: Any) -> None:
    index, _, metadata = model.build_vector_index(["a"])
    with pytest.raises(InvalidInput, match="top_k"):
        model.search_index(QUERY, index, metadata, top_k)


def test_a_search_is_one_call_however_large_the_index(model: EmbeddingClient) -> None:
    index, _, metadata = model.build_vector_index(DOCS)
    model.search_index(QUERY, index, metadata)
    sequences = model.stats()["sequences"]
    with counted(model) as calls:
        for _ in range(5):
            model.search_index(QUERY, index, metadata)
    assert calls == {"search": 5}
    assert model.stats()["sequences"] == sequences + 5


def test_documents_come_and_go(model: EmbeddingClient) -> None:
    index, _, metadata = model.build_vector_index(DOCS, URLS)
    ids = index.add(["volcanoes, and the newest page about them"], ["https://example.org/new"])
    assert ids == [50]
    assert model.search_index(QUERY, index, metadata, 51)[0]["rank"] == 1
    assert 50 in [result["id"] for result in model.search_index(QUERY, index, metadata)]
    gone = [number for number in range(50) if "volcanoes" in DOCS[number]]
    assert index.remove(gone) == 5
    assert index.remove(gone) == 0
    assert (len(index), len(metadata), index.embeddings.shape) == (46, 46, (46, 384))
    results = model.search_index(QUERY, index, metadata, 100)
    assert len(results) == 46
    assert results[0]["id"] == 50
    assert not set(gone) & {result["id"] for result in results}
    assert index.remove(list(range(40))) > 12  # over a quarter: the client resends the rest
    assert len(model.search_index(QUERY, index, metadata, 100)) == len(index)
    assert index.add(["one more"]) == [51]


def test_a_killed_server_gets_the_index_again_and_nothing_is_embedded_again(tmp_path: Path) -> None:
    server = ModelServer(tmp_path).start()
    with server.client(EMBEDDING_FALLBACK="none") as client:
        index, _, metadata = client.build_vector_index(DOCS, URLS)
        before = client.search_index(QUERY, index, metadata, 5)
        server.kill()
        server.start()
        start = client.stats()["sequences"]
        with counted(client) as calls, ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _: client.search_index(QUERY, index, metadata, 5), range(16)))
        assert all([r["id"] for r in results] == [r["id"] for r in before] for results in found)
        assert client.stats()["sequences"] == start + 16
        assert calls["put"] == 1, "once for all who found it gone"
        assert held(client)["count"] == 1
    assert server.stop() == 0


def test_while_the_server_is_away_the_same_embeddings_answer_and_it_goes_back(tmp_path: Path) -> None:
    server = ModelServer(tmp_path).start()
    with server.client() as client:
        index, _, metadata = client.build_vector_index(DOCS, URLS)
        before = client.search_index(QUERY, index, metadata, 5)
        server.kill()
        away = client.search_index(QUERY, index, metadata, 5)
        assert client.client_stats()["state"] == "falling back"
        assert [result["id"] for result in away] == [result["id"] for result in before]
        scores = [[result["relevance_score"] for result in results] for results in (away, before)]
        assert np.allclose(*scores, atol=2e-3)
        index.add(["volcanoes while nobody was there"])
        index.remove([0])
        assert index.describe()["kind"] == "flat"
        server.start()
        wait_for(lambda: client.client_stats()["state"] == "connected", 60, "the return")
        sequences = client.stats()["sequences"]
        with counted(client) as calls:
            back = client.search_index(QUERY, index, metadata, 100)
        assert {result["id"] for result in back} == set(range(1, 51))
        assert (calls["put"], client.stats()["sequences"]) == (1, sequences + 1), "nothing is embedded again"
        assert held(client)["count"] == 1
    assert server.stop() == 0


def test_without_a_server_a_local_model_s_vectors_are_searched_here(server: ModelServer) -> None:
    with server.client(USE_IPC_EMBEDDING="false") as client:
        index, _, metadata = client.build_vector_index(DOCS, URLS, metric="cosine")
        results = client.search_index(QUERY, index, metadata)
        assert all("volcanoes" in result["content"] for result in results)
        assert results[0]["relevance_score"] > results[2]["relevance_score"] > 0.3
        assert index.add(["volcanoes, once more"]) == [50]
        assert index.remove([0, 1]) == 2
        assert len(client.search_index(QUERY, index, metadata, 100)) == 49
        assert (index.recall, client.client_stats()["state"]) == (1.0, "local")


def test_the_least_recently_used_makes_room_and_comes_again(few: EmbeddingClient) -> None:
    texts = [[f"{subject} {number}" for number in range(4)] for subject in SUBJECTS[:4]]
    built = [few.build_vector_index(docs) for docs in texts]
    assert held(few)["count"] == 3
    evicted = held(few)["evicted"]
    for (index, _, metadata), docs in zip(built, texts, strict=True):
        assert few.search_index(docs[2], index, metadata, 1)[0]["content"] == docs[2]
    assert held(few)["count"] == 3
    assert held(few)["evicted"] > evicted


def test_indexes_are_bounded_in_bytes_and_one_that_never_fits_is_refused(few: EmbeddingClient) -> None:
    first, _, metadata = few.build_vector_index([f"{number} of the first" for number in range(400)])
    few.build_vector_index([f"{number} of the second" for number in range(400)])
    assert held(few)["bytes"] <= 1 << 20
    assert few.search_index("7 of the first", first, metadata, 1)[0]["id"] == 7
    with pytest.raises(TooLarge):
        first.add([f"{number} too many" for number in range(300)])
    assert (len(first), len(metadata), first.ids[-1]) == (400, 400, 399)
    assert few.search_index("8 of the first", first, metadata, 1)[0]["id"] == 8
    with pytest.raises(TooLarge, match="EMBEDDING_MAX_INDEX_BYTES allows 1,048,576"):
        few.build_vector_index([str(number) for number in range(1000)])


def test_an_index_that_nobody_holds_is_let_go_with_the_next_call(few: EmbeddingClient) -> None:
    kept, _, metadata = few.build_vector_index(DOCS)
    before = held(few)["count"]
    index, _, _ = few.build_vector_index(["a", "b"])
    few.search_index(QUERY, kept, metadata)
    count = held(few)["count"]
    del index
    gc.collect()
    assert len(few.released) >= 1
    assert held(few)["count"] == count, "the garbage collector calls nobody"
    few.encode("the next call")
    assert held(few)["count"] == before
    assert not few.released
    assert few.search_index(QUERY, kept, metadata)[0]["rank"] == 1


WORKER = """
import sys
from embeddingClient import get_embedding_model
model = get_embedding_model()
index, embeddings, metadata = model.load_vector_index(sys.argv[1])
for _ in range(20):
    found = [result["id"] for result in model.search_index(sys.argv[2], index, metadata, 5)]
    assert found == [int(number) for number in sys.argv[3].split(",")], found
assert not [name for name in ("faiss", "torch") if name in sys.modules]
index.add(["one worker's own"]) if sys.argv[4] == "0" else None
assert len(model.search_index(sys.argv[2], index, metadata, 100)) == len(index)
"""


def test_eight_processes_share_one_index_of_one_file_without_faiss(tmp_path: Path) -> None:
    server = ModelServer(tmp_path).start()
    with server.client(EMBEDDING_FALLBACK="none") as client:
        index, _, metadata = client.build_vector_index(DOCS, URLS)
        index.save(tmp_path / "an index")
        expected = ",".join(str(r["id"]) for r in client.search_index(QUERY, index, metadata, 5))
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(tmp_path / "an index"), QUERY, expected, str(number)],
                env=server.environment(EMBEDDING_FALLBACK="none"),
            )
            for number in range(8)
        ]
        assert [worker.wait(60) for worker in workers] == [0] * 8
        assert held(client)["count"] == 2, "that of the file, which is this one's too, and a worker's own"
    assert server.stop() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_searches_its_parent_s_index_and_changes_its_own(model: EmbeddingClient) -> None:
    index, _, metadata = model.build_vector_index(DOCS, URLS)
    before = held(model)["count"]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            same = len(model.search_index(QUERY, index, metadata, 100)) == 50
            index.add(["volcanoes of the child's"])
            own = len(model.search_index(QUERY, index, metadata, 100)) == 51
            code = 0 if same and own else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(model.search_index(QUERY, index, metadata, 100)) == 50
    assert held(model)["count"] == before + 1


def test_a_saved_index_comes_back_as_it_was(model: EmbeddingClient, tmp_path: Path) -> None:
    index, _, metadata = model.build_vector_index(DOCS, URLS, metric="cosine")
    index.remove([3, 4])
    before = model.search_index(QUERY, index, metadata, 100)
    index.save(tmp_path / "saved")
    sequences = model.stats()["sequences"]
    loaded, embeddings, there = model.load_vector_index(tmp_path / "saved")
    assert model.stats()["sequences"] == sequences
    assert (embeddings == index.embeddings).all()
    assert there == metadata
    assert (loaded.metric, loaded.identity, loaded.ids) == ("cosine", index.identity, index.ids)
    assert model.search_index(QUERY, loaded, there, 100) == before
    assert loaded.add(["another"]) == [50]


def test_a_file_that_is_not_whole_is_told(model: EmbeddingClient, tmp_path: Path) -> None:
    index, _, _ = model.build_vector_index(DOCS, URLS)
    whole = tmp_path / "whole"
    index.save(whole)
    data = whole.read_bytes()
    middle = len(data) // 2
    changed = bytes([data[middle] ^ 0xFF])
    for broken in (b"", b"text", data[:middle], data[:middle] + changed + data[middle + 1 :]):
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(IndexCorrupted, match="not a saved vector index, or is damaged"):
            VectorIndex.load(tmp_path / "broken", model)
    np.savez(tmp_path / "other.npz", a=np.arange(3))
    with pytest.raises(IndexCorrupted):
        model.load_vector_index(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", about=np.array([{"a": 1}], dtype=object))
    with pytest.raises(IndexCorrupted):
        model.load_vector_index(tmp_path / "pickled.npz")


def test_an_index_of_another_model_is_refused(tmp_path: Path, other_model: Path) -> None:
    server = ModelServer(tmp_path).start()
    with server.client(EMBEDDING_ON_MODEL_CHANGE="follow", EMBEDDING_FALLBACK="none") as client:
        index, _, metadata = client.build_vector_index(DOCS, URLS)
        index.save(tmp_path / "saved")
        client.swap_model(str(other_model))
        with pytest.raises(ModelMismatch, match="embed its documents again") as caught:
            client.search_index(QUERY, index, metadata)
        assert caught.value.fields["expected"] == index.identity
        with pytest.raises(ModelMismatch):
            client.load_vector_index(tmp_path / "saved")
        with pytest.raises(ModelMismatch):
            index.add(["one more"])
        own, _, others = client.build_vector_index(DOCS, URLS)
        assert len(client.search_index(QUERY, own, others)) == 3
        client.swap_model(MODEL)
        client.encode("met again")
        assert "volcanoes" in client.search_index(QUERY, index, metadata)[0]["content"]
    assert server.stop() == 0


def test_a_large_index_is_searched_exactly_until_its_graph_is_built(model: EmbeddingClient) -> None:
    docs = [f"{SUBJECTS[number % 10]} {number}" for number in range(1200)]
    index, embeddings, metadata = model.build_vector_index(docs, kind="hnsw")
    query = "bridges 708"
    exact = np.argsort(((embeddings - model.encode(query)) ** 2).sum(1))[:10].tolist()
    assert len(set(exact) & {r["id"] for r in model.search_index(query, index, metadata, 10)}) >= 9
    assert wait_for(lambda: index.describe()["built"], 60, "the graph")
    assert index.describe()["kind"] == "hnsw"
    assert index.recall >= 0.98
    assert len(set(exact) & {r["id"] for r in model.search_index(query, index, metadata, 10)}) >= 9


def test_a_caller_whose_time_is_over_hears_so(model: EmbeddingClient, server: ModelServer) -> None:
    with server.client(EMBEDDING_FALLBACK="none", EMBEDDING_TIMEOUT_S="0.5") as hurried:
        index, _, metadata = hurried.build_vector_index(["a"])
        locked = threading.Event()
        with index._lock:
            locked.set()
            with pytest.raises(DeadlineExceeded):
                index.add(["b"])
        assert len(hurried.search_index(QUERY, index, metadata)) == 1


def asked(server: ModelServer, call: Any, raw: bytes = b"") -> codec.Answer:
    """Return the answer to a key holder that is not a real client."""
    connection = key_holder(server)
    try:
        connection.set_deadline(soon())
        connection.send_bytes(codec.encode(call), memoryview(raw))
        answer = codec.decode_answer(connection.recv_bytes(1 << 20))
        if isinstance(answer, codec.Hits):
            connection.recv_into(memoryview(bytearray(12 * answer.count)))
        return answer
    finally:
        connection.close()


def put(identity: str, rows: np.ndarray, **changes: Any) -> tuple[codec.Put, bytes]:
    count, dimension = rows.shape
    fields: dict[str, Any] = {"start": 0, "total": count, "count": count, "dimension": dimension, **changes}
    call = codec.Put(7, 20.0, NAME, identity, 0, "l2", "flat", **fields)
    return call, np.arange(count).astype("<i8").tobytes() + rows.astype("<f4").tobytes()


def failure(answer: codec.Answer) -> Any:
    assert isinstance(answer, codec.Failure), answer
    return codec.error_in(answer)


def test_hostile_messages_get_an_error_each_and_the_server_goes_on(
    server: ModelServer, model: EmbeddingClient
) -> None:
    identity = model.describe().identity
    rows = np.ones((2, 384), np.float32)
    bad = rows.copy()
    bad[1, 3] = np.nan
    assert "not finite" in failure(asked(server, *put(identity, bad))).message
    assert type(failure(asked(server, *put("b" * 64, rows)))) is UnknownIndex
    assert type(failure(asked(server, *put(identity, rows, start=5, total=9)))) is UnknownIndex
    assert type(failure(asked(server, *put(identity, rows, total=1 << 40)))) is TooLarge
    assert type(failure(asked(server, *put(identity, rows, count=1 << 30)))) is ProtocolError
    assert type(failure(asked(server, codec.Search(7, 20.0, NAME, 0, "q", "", 3)))) is UnknownIndex
    assert asked(server, codec.Forget(7, 20.0, [NAME] * 100)) == codec.Reply(7, 0)
    assert asked(server, *put(identity, rows)) == codec.Reply(7, 2)
    assert type(failure(asked(server, *put(identity, rows, start=2, dimension=192)))) is InvalidInput
    assert type(failure(asked(server, codec.Search(7, 20.0, NAME, 0, "q", "", 0)))) is InvalidInput
    assert type(failure(asked(server, codec.Search(7, 20.0, NAME, 1, "q", "", 3)))) is UnknownIndex
    hits = asked(server, codec.Search(7, 20.0, NAME, 0, "q", "", 10**9))
    assert isinstance(hits, codec.Hits)
    assert hits.count == 2
    wrong = codec.Search(7, 20.0, NAME, 0, "q", "", 3, 8)  # a query of 8 dimensions
    assert type(failure(asked(server, wrong))) is InvalidInput
    assert asked(server, codec.Remove(7, 20.0, NAME, 0, 0, [2**63 - 1])) == codec.Reply(7, 0)
    assert asked(server, codec.Forget(7, 20.0, [NAME])) == codec.Reply(7, 1)
    assert model.encode("still there").shape == (384,)
    assert b"Traceback" not in server.said()
