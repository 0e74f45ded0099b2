"""What the embedded engine itself does, and why the store does not rely on it: qdrant-edge-py 0.9.0.

A test that fails after an upgrade says that a precaution may go, or that a new one is needed.
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge as edge

from embedshare.errors import StoreFailed, StoreInUse
from embedshare.sessions.store import embedded
from embedshare.sessions.store.filters import Where, equal
from tests.sessions.store.chunks import publish, rows
from tests.sessions.store.places import place

DIMENSION = 4


def _configured(**more: Any) -> Any:
    vectors = edge.EdgeVectorParams(size=DIMENSION, distance=edge.Distance.Cosine)
    return edge.EdgeConfig(vectors=vectors, **more)


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "shard").mkdir()
    made = edge.EdgeShard.create(str(tmp_path / "shard"), _configured(max_search_threads=1))
    yield made
    made.close()


def _put(shard: Any, *points: tuple[int, list[float], dict[str, Any]]) -> None:
    made = [edge.Point(number, vector, payload) for number, vector, payload in points]
    shard.update(edge.UpdateOperation.upsert_points(made))


def _ids(shard: Any, **more: Any) -> list[int]:
    query = edge.Query.Nearest([1.0, 0.0, 0.0, 0.0])
    return [each.id for each in shard.query(edge.QueryRequest(limit=10, query=query, **more))]


def test_the_pinned_version_is_the_one_that_these_tests_know() -> None:
    assert importlib.metadata.version("qdrant-edge-py") == "0.9.0"


@pytest.mark.parametrize("is_indexed", [False, True])
def test_a_boolean_filter_matches_the_integer_1_and_never_true(shard: Any, is_indexed: bool) -> None:
    if is_indexed:
        shard.update(edge.UpdateOperation.create_field_index("ok", edge.PayloadSchemaType.Bool))
    _put(shard, (1, [1.0, 0, 0, 0], {"ok": True}), (2, [1.0, 0, 0, 0], {"ok": 1}))
    matched = edge.FieldCondition(key="ok", match=edge.MatchValue(True))
    assert 1 not in _ids(shard, filter=edge.Filter(must=[matched]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_stored_and_never_found(shard: Any, value: float) -> None:
    _put(shard, (1, [1.0, 0, 0, 0], {}), (2, [value, 1.0, 0, 0], {}))
    assert shard.count(edge.CountRequest()) == 2
    assert _ids(shard) == [1]


def test_a_number_may_come_back_with_another_last_digit(shard: Any) -> None:
    _put(shard, (1, [1.0, 0, 0, 0], {"n": 1.9129227050103194e25}))
    assert shard.retrieve([1], True, False)[0].payload["n"] == 1.9129227050103192e25


def test_a_score_threshold_is_strict(shard: Any) -> None:
    _put(shard, (1, [1.0, 0, 0, 0], {}), (2, [1.0, 1.0, 0, 0], {}))
    query = edge.Query.Nearest([1.0, 0.0, 0.0, 0.0])
    second = shard.query(edge.QueryRequest(limit=2, query=query))[1].score
    assert _ids(shard, score_threshold=second) == [1]


def test_equal_scores_come_in_no_order_of_their_ids(shard: Any) -> None:
    for number in range(1, 11):
        _put(shard, (number, [1.0, 0, 0, 0], {}))
    found = _ids(shard)
    assert sorted(found) == list(range(1, 11))
    assert found not in (sorted(found), sorted(found, reverse=True))


def test_a_score_may_exceed_1(tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    vectors = edge.EdgeVectorParams(size=384, distance=edge.Distance.Cosine)
    shard = edge.EdgeShard.create(str(tmp_path / "wide"), edge.EdgeConfig(vectors=vectors))
    found = []
    for number, row in enumerate(rows(200, 384)):
        _put(shard, (number, row.tolist(), {}))
        found.append(shard.query(edge.QueryRequest(limit=1, query=edge.Query.Nearest(row.tolist())))[0].score)
    shard.close()
    assert max(found) > 1.0


def test_every_error_of_the_engine_is_a_bare_exception_that_the_store_turns_into_its_own(
    shard: Any, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match="expected dim: 4, got 2") as refused:
        _put(shard, (1, [1.0, 0.0], {}))
    assert type(refused.value) is Exception
    with pytest.raises(StoreFailed, match="expected dim: 4, got 2"), embedded._told():
        _put(shard, (1, [1.0, 0.0], {}))
    with pytest.raises(StoreInUse), embedded._told():
        edge.EdgeShard.load(str(tmp_path / "shard"))


def test_a_shard_starts_one_search_thread_where_it_is_told_to(tmp_path: Path) -> None:
    folder = Path("/proc/self/task")
    if not folder.exists():
        pytest.skip("the engine's threads are counted in /proc")
    before = len(list(folder.iterdir()))
    with place("embedded", tmp_path) as own:
        store = own.open(dimension=DIMENSION)
        publish(store, rows(50, DIMENSION))
        store.search("s", np.ones(DIMENSION), 1)
        assert len(list(folder.iterdir())) - before <= 1


def test_queries_and_writes_of_several_threads_are_right(tmp_path: Path) -> None:
    """The engine needs no lock of ours; the client's local mode does (`qdrant_server.LockedClient`)."""
    engine = embedded.opened(tmp_path / "store", "model", DIMENSION)
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        from embedshare.sessions.store.base import derived_id
        from embedshare.sessions.store.engine import Record

        try:
            for number in range(100):
                ids = derived_id(writer, number)
                engine.upsert([Record(ids, [1.0, 0.0, 0.0, float(number)], {"w": str(writer)})])
                assert engine.nearest([1.0, 0.0, 0.0, 0.0], 1, Where())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [engine.count(Where([equal("w", str(writer))])) for writer in range(4)] == [100] * 4
    engine.close()


def test_a_filter_without_conditions_would_delete_everything_and_is_refused(tmp_path: Path) -> None:
    engine = embedded.opened(tmp_path / "store", "model", DIMENSION)
    with pytest.raises(AssertionError, match="delete everything"):
        engine.delete(Where())
    engine.close()


def test_opening_frees_the_space_of_deleted_chunks_and_searches_stay_exact(tmp_path: Path) -> None:
    vectors = rows(4000, 64)
    with place("embedded", tmp_path) as own:
        store = own.open(dimension=64)
        publish(store, vectors[:3000], document="gone")
        publish(store, vectors[3000:], document="kept")
        store.drop_document("s", "gone")
        store.close()
        store = own.open(dimension=64)
        assert store._engine._shard.info().indexed_vectors_count == 0  # type: ignore[attr-defined]
        assert store.count("s") == 1000
        query = rows(1, 64, seed=3)[0]
        lengths = np.linalg.norm(vectors[3000:], axis=1)
        expected = np.argsort(-(vectors[3000:] @ query) / lengths)[:10]
        assert [each.chunk for each in store.search("s", query, 10)] == list(expected)


@pytest.fixture
def sparse_shard(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "sparse").mkdir()
    made = edge.EdgeShard.create(
        str(tmp_path / "sparse"), _configured(sparse_vectors={"sparse": edge.EdgeSparseVectorParams()})
    )
    yield made
    made.close()


def _by_weights(shard: Any, indices: list[int], values: list[float]) -> list[tuple[int, float]]:
    query = edge.Query.Nearest(edge.SparseVector(indices, values), using="sparse")
    return [(each.id, each.score) for each in shard.query(edge.QueryRequest(limit=10, query=query))]


def test_a_token_that_comes_twice_counts_once(sparse_shard: Any) -> None:
    vectors = {"": [1.0, 0.0, 0.0, 0.0], "sparse": edge.SparseVector([7, 7], [1.0, 1.0])}
    sparse_shard.update(edge.UpdateOperation.upsert_points([edge.Point(1, vectors, {})]))
    assert _by_weights(sparse_shard, [7], [1.0]) == [(1, 1.0)]


def test_a_point_without_weights_is_stored_and_found_by_no_sparse_query(sparse_shard: Any) -> None:
    vectors = {"": [1.0, 0.0, 0.0, 0.0], "sparse": edge.SparseVector([], [])}
    sparse_shard.update(edge.UpdateOperation.upsert_points([edge.Point(1, vectors, {})]))
    assert _ids(sparse_shard) == [1]
    assert _by_weights(sparse_shard, [7], [1.0]) == _by_weights(sparse_shard, [], []) == []


def test_a_shard_of_dense_vectors_cannot_be_opened_with_sparse_ones(tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    shard = edge.EdgeShard.create(str(tmp_path / "dense"), _configured())
    _put(shard, (1, [1.0, 0, 0, 0], {}))
    shard.close()
    with pytest.raises(Exception, match="incompatible with existing segments"):
        edge.EdgeShard.load(
            str(tmp_path / "dense"), _configured(sparse_vectors={"sparse": edge.EdgeSparseVectorParams()})
        )
