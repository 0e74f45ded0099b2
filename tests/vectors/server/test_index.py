"""An index against exact search by FAISS: every metric and kind, while vectors are added and removed."""

from __future__ import annotations

import threading
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedshare.errors import InvalidInput
from embedshare.vectors import exact
from embedshare.vectors.server.index import Index

DICE = np.random.default_rng(7)
METRICS = ("l2", "cosine", "ip")


def clustered(count: int, dimension: int, seed: int = 1) -> np.ndarray:
    """Return vectors distributed like texts' vectors: clustered around topics."""
    dice = np.random.default_rng(seed)
    topics = dice.normal(size=(max(1, count // 50), dimension))
    around = topics[dice.integers(len(topics), size=count)] + 0.5 * dice.normal(size=(count, dimension))
    return around.astype(np.float32)


def truth(rows: np.ndarray, queries: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the result of FAISS's own flat index."""
    dimension = rows.shape[1]
    index = faiss.IndexFlatL2(dimension) if metric == "l2" else faiss.IndexFlatIP(dimension)
    rows, queries = rows.copy(), queries.copy()
    if metric == "cosine":
        faiss.normalize_L2(rows)
        faiss.normalize_L2(queries)
    index.add(rows)
    scores, positions = index.search(queries, k)
    return positions, scores


def filled(rows: np.ndarray, metric: str = "l2", kind: str = "flat") -> Index:
    index = Index(rows.shape[1], metric, kind)
    index.add(np.arange(len(rows)), rows)
    return index


@pytest.fixture(params=["faiss", "numpy"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Exact search with FAISS, and without it as if it were not installed."""
    if request.param == "numpy":
        monkeypatch.setattr(exact, "faiss", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("metric", METRICS)
def test_flat_finds_what_faiss_s_flat_index_finds(library: str, metric: str) -> None:
    rows, queries = clustered(500, 24), clustered(20, 24, seed=2)
    expected, scores = truth(rows, queries, 10, metric)
    found, given_scores = filled(rows, metric).search(queries, 10)
    assert (found == expected).all()
    assert np.allclose(given_scores, scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_more_than_there_are_gives_all_of_them_once(library: str, metric: str) -> None:
    index = filled(clustered(7, 5), metric)
    ids, scores = index.search(clustered(2, 5), 10**9)
    assert ids.shape == scores.shape == (2, 7)
    assert all(sorted(row) == list(range(7)) for row in ids.tolist())
    index.remove(np.array([3]))
    assert sorted(index.search(clustered(1, 5), 100)[0][0].tolist()) == [0, 1, 2, 4, 5, 6]


def test_an_empty_index_finds_nothing(library: str) -> None:
    ids, scores = Index(4, "l2", "auto").search(np.ones((1, 4), np.float32), 3)
    assert ids.shape == scores.shape == (1, 0)


def test_equal_vectors_are_all_found_and_zeros_have_a_cosine_of_zero(library: str) -> None:
    rows = np.array([[1, 0], [1, 0], [0, 0], [-1, 0]], np.float32)
    ids, scores = filled(rows, "cosine").search(np.array([[2, 0]], np.float32), 4)
    assert sorted(ids[0][:2]) == [0, 1]
    assert ids[0][2:].tolist() == [2, 3]
    assert np.allclose(scores[0], [1, 1, 0, -1])


@pytest.mark.parametrize(
    ("kind", "metric", "count"), [*[("hnsw", metric, 3000) for metric in METRICS], ("ivf,pq", "l2", 10_000)]
)
def test_an_approximate_index_finds_nearly_all_and_says_how_much(metric: str, kind: str, count: int) -> None:
    rows, queries = clustered(count, 32), clustered(100, 32, seed=3)
    index = filled(rows, metric, kind)
    assert (index.built_kind, index.recall) == ("flat", 1.0)
    index.build()
    assert index.built_kind == kind
    expected, _ = truth(rows, queries, 10, metric)
    found, _ = index.search(queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, expected, strict=True)])
    assert recall > 0.95
    assert index.recall > 0.95
    ids, _ = index.search(queries[:1], 10**9)
    assert sorted(ids[0].tolist()) == list(range(count))


def test_vectors_added_and_removed_after_it_was_built_count() -> None:
    rows, later = clustered(2000, 16), clustered(100, 16, seed=4)
    index = filled(rows, "l2", "hnsw")
    index.build()
    index.add(np.arange(5000, 5100), later)
    assert [index.search(later[at : at + 1], 1)[0][0][0] for at in range(100)] == list(range(5000, 5100))
    gone = np.arange(0, 400)
    assert index.remove(gone) == 400
    assert index.remove(gone) == 0
    ids, scores = index.search(rows[:400], 10)
    assert ids.shape == (400, 10)
    assert ids.min() >= 400
    assert len(index) == 1700
    alive = np.concatenate([rows[400:], later])
    numbers = np.concatenate([np.arange(400, 2000), np.arange(5000, 5100)])
    expected, distances = truth(alive, rows[:400], 10, "l2")
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, numbers[expected], strict=True)])
    assert recall > 0.95
    assert np.allclose(np.sort(scores[:, 0]), np.sort(distances[:, 0]), rtol=0.05, atol=0.05)


def test_an_index_of_which_a_quarter_is_gone_or_new_is_worn() -> None:
    index = filled(clustered(1000, 8), "l2", "hnsw")
    index.build()
    index.remove(np.arange(250))
    assert not index.worn
    index.remove(np.arange(251))
    assert index.worn
    grown = filled(clustered(1000, 8), "l2", "hnsw")
    grown.build()
    grown.add(np.arange(1000, 1250), clustered(250, 8))
    assert not grown.worn
    grown.add(np.array([1250]), clustered(1, 8))
    assert grown.worn


@pytest.mark.parametrize(
    ("ids", "rows", "said"),
    [
        ([0], np.ones((1, 3)), r"shape \(1, 3\) do not fit an index of 4"),
        ([0], np.ones(4), "shape"),
        ([0], np.array([[1, np.nan, 1, 1]]), "not finite"),
        ([0], np.array([[1, np.inf, 1, 1]]), "not finite"),
        ([0, 1], np.ones((1, 4)), "2 ids for 1 vectors"),
        ([1, 1], np.ones((2, 4)), "must grow"),
        ([2, 1], np.ones((2, 4)), "must grow"),
        ([-1], np.ones((1, 4)), "must grow"),
    ],
)
def test_what_is_not_an_index_s_is_refused_and_changes_nothing(
    ids: list[int], rows: np.ndarray, said: str
) -> None:
    index = Index(4, "l2", "flat")
    with pytest.raises(InvalidInput, match=said):
        index.add(np.array(ids), rows)
    assert (len(index), index.count) == (0, 0)


def test_a_query_of_another_shape_or_none_wanted_is_refused() -> None:
    index = filled(clustered(3, 4))
    for query, k in ((np.ones((1, 5)), 1), (np.full((1, 4), np.nan), 1), (np.ones((1, 4)), 0)):
        with pytest.raises(InvalidInput):
            index.search(query.astype(np.float32), k)


changes = st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(1, 12)), max_size=12)


@settings(max_examples=60)
@given(changes=changes, metric=st.sampled_from(METRICS), k=st.integers(1, 40), seed=st.integers(0, 99))
def test_after_any_changes_it_finds_what_is_there(changes: Any, metric: str, k: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    index, there, next_id = Index(6, metric, "flat"), {}, 0
    for what, count in changes:
        if what == "add":
            rows = dice.normal(size=(count, 6)).astype(np.float32)
            ids = np.arange(next_id, next_id + 2 * count, 2)
            index.add(ids, rows)
            there.update(zip(ids.tolist(), rows, strict=True))
            next_id = int(ids[-1]) + 1
        else:
            ids = dice.integers(0, max(1, next_id), size=count)
            assert index.remove(ids) == sum(there.pop(number, None) is not None for number in ids.tolist())
    assert len(index) == len(there)
    query = dice.normal(size=(1, 6)).astype(np.float32)
    ids, scores = index.search(query, k)
    if not there:
        assert ids.shape == (1, 0)
        return
    numbers, rows = np.array(list(there)), np.stack(list(there.values()))
    expected, distances = truth(rows, query, min(k, len(rows)), metric)
    assert (ids[0] == numbers[expected[0]]).all()
    assert np.allclose(scores, distances, rtol=1e-4, atol=1e-4)


def test_searches_go_on_while_vectors_come_and_it_is_built() -> None:
    rows = clustered(4000, 16)
    index = filled(rows[:2000], "l2", "hnsw")
    stop, wrong = threading.Event(), []

    def search() -> None:
        while not stop.is_set():
            at = int(DICE.integers(2000))
            ids, scores = index.search(rows[at : at + 1], 1)
            if ids[0][0] != at and scores[0][0] > 1e-4:
                wrong.append((at, ids[0][0]))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    builder = threading.Thread(target=index.build)
    builder.start()
    for start in range(2000, 4000, 100):
        index.add(np.arange(start, start + 100), rows[start : start + 100])
    builder.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert index.built_kind == "hnsw"
    assert len(index) == 4000
    found = index.search(rows[2000:], 1)[0][:, 0]
    assert (found == np.arange(2000, 4000)).mean() > 0.99
    assert len(wrong) < 5, wrong
