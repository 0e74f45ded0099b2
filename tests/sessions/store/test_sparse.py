"""Sparse vectors beside dense ones: the same over every engine, and exact."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedshare.errors import InvalidInput, ModelMismatch, NotFinite, UploadIncomplete
from embedshare.sessions.store.base import Found, VectorStore, point_id
from embedshare.sessions.store.weights import Weights
from tests.sessions.store.chunks import chunk_of, publish, rows, vector, weights
from tests.sessions.store.places import KINDS, Place, place

X, Y = vector(1, 0, 0, 0), vector(0, 1, 0, 0)


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def store(own: Place) -> VectorStore:
    return own.open(sparse="splade")


def put(
    store: VectorStore, given: list[Weights], document: str = "d", version: str = "v1", **more: object
) -> None:
    """Put and publish chunks of these weights, whose dense vectors turn from X to Y."""
    store.put([
        chunk_of(number, X + number * Y, document=document, version=version, sparse=each, **more)
        for number, each in enumerate(given)
    ])  # fmt: skip
    store.publish("s", document, version, len(given))


def chunks(found: list[Found]) -> list[int]:
    return [each.chunk for each in found]


def sparse_rows(count: int, seed: int = 1) -> list[Weights]:
    """Each of up to 12 of 60 tokens."""
    random = np.random.default_rng(seed)
    return [
        Weights(
            np.sort(random.choice(60, random.integers(1, 13), replace=False)).astype(np.int32),
            random.random(60).astype(np.float32),
        )
        for _ in range(count)
    ]


def cut(given: list[Weights]) -> list[Weights]:
    return [Weights(each.indices, each.values[: len(each.indices)]) for each in given]


def whole(weights: Weights) -> np.ndarray:
    row = np.zeros(60, np.float32)
    row[weights.indices] = weights.values
    return row


def test_chunks_are_found_by_the_dot_product_and_only_where_they_share_a_token(store: VectorStore) -> None:
    put(store, [weights((1, 0.5), (5, 2.0)), weights((5, 1.0)), weights((7, 9.0)), weights()])
    [found] = store.rankings("s", [weights((1, 2.0), (5, 3.0))], 10)
    assert chunks(found) == [0, 1]
    assert [each.score for each in found] == [7.0, 3.0]
    assert found[0].id == point_id("s", "d", 0)
    assert store.rankings("s", [weights((99, 1.0)), weights()], 10) == [[], []]
    assert chunks(store.search("s", X, 10)) == [0, 1, 2, 3]  # a chunk without weights is one


def test_the_heaviest_are_the_exact_ones(store: VectorStore) -> None:
    given = cut(sparse_rows(300))
    put(store, given)
    [query] = cut(sparse_rows(1, seed=2))
    products = np.stack(list(map(whole, given))) @ whole(query)
    [found] = store.rankings("s", [query], 20)
    assert chunks(found) == list(np.argsort(-products, kind="stable")[:20])
    assert [each.score for each in found] == pytest.approx(np.sort(products)[::-1][:20], rel=1e-5)


def test_several_rankings_are_those_of_each_query(store: VectorStore) -> None:
    put(store, [weights((1, 1.0)), weights((1, 3.0)), weights((2, 1.0))])
    dense, sparse = store.rankings("s", [X, weights((1, 1.0))], 2)
    assert dense == store.search("s", X, 2)
    assert chunks(sparse) == [1, 0]


def test_equal_products_are_ordered_by_id(store: VectorStore) -> None:
    put(store, [weights((1, 1.0))] * 40)
    expected = sorted(point_id("s", "d", number) for number in range(40))
    for top_k in (1, 7, 40):
        [found] = store.rankings("s", [weights((1, 2.0))], top_k)
        assert [each.id for each in found] == expected[:top_k]


def test_filters_hold_for_every_ranking(store: VectorStore) -> None:
    put(store, [weights((1, 1.0))], "old", metadata={"year": 1999})
    put(store, [weights((1, 9.0))], "new", metadata={"year": 2020})
    found = store.rankings("s", [X, weights((1, 1.0))], 5, {"year": {"lt": 2000}})
    assert [[each.document for each in ranking] for ranking in found] == [["old"], ["old"]]


def test_hidden_and_dropped_chunks_are_in_no_ranking(store: VectorStore) -> None:
    put(store, [weights((1, 1.0))], "kept")
    put(store, [weights((1, 5.0))] * 3, "gone")
    store.put([chunk_of(number, X, document="unfinished", sparse=weights((1, 9.0))) for number in range(100)])
    store.drop_document("s", "gone")
    assert [each.document for each in store.rankings("s", [weights((1, 1.0))], 2)[0]] == ["kept"]
    store.drop_session("s")
    assert store.rankings("s", [X, weights((1, 1.0))], 2) == [[], []]


def test_both_kinds_of_vectors_are_there_after_reopening(own: Place) -> None:
    store = own.open(sparse="splade")
    put(store, [weights((1, 1.0)), weights((1, 2.0))])
    store.put([chunk_of(0, X, document="unfinished", sparse=weights((1, 9.0)))])
    before = store.rankings("s", [X, weights((1, 1.0))], 5)
    store.close()
    again = own.open(sparse="splade")
    assert again.rankings("s", [X, weights((1, 1.0))], 5) == before
    assert list(map(chunks, before)) == [[0, 1], [1, 0]]
    with pytest.raises(UploadIncomplete, match="0 of"):
        again.publish("s", "unfinished", "v1", 1)


@pytest.mark.parametrize(("made", "opened"), [("splade", "other"), ("splade", None), (None, "splade")])
def test_a_store_of_another_sparse_model_or_none_is_refused(
    own: Place, made: str | None, opened: str | None
) -> None:
    own.open(sparse=made).close()
    with pytest.raises(ModelMismatch):
        own.open(sparse=opened)
    assert own.open(sparse=made).count("s") == 0


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (weights((5, 1.0), (1, 1.0)), InvalidInput),
        (weights((5, 1.0), (5, 1.0)), InvalidInput),
        (weights((-1, 1.0)), InvalidInput),
        (weights((1, np.nan)), NotFinite),
        (weights((1, np.inf)), NotFinite),
        (Weights(np.array([1, 2], np.int32), np.array([1.0], np.float32)), InvalidInput),
        (None, InvalidInput),
    ],
)
def test_weights_that_engines_would_misread_are_refused(
    store: VectorStore, given: Weights | None, error: type[InvalidInput]
) -> None:
    with pytest.raises(error, match="chunk 7") as refused:
        store.put([chunk_of(6, X, sparse=weights((1, 1.0))), chunk_of(7, X, sparse=given)])
    assert type(refused.value) is error
    assert refused.value.fields["chunk"] == 7
    if given is not None:
        with pytest.raises(error, match="query's sparse vector"):
            store.rankings("s", [given], 1)
    with pytest.raises(UploadIncomplete, match="0 of"):
        store.publish("s", "d", "v1", 1)


def test_a_store_without_a_sparse_model_takes_and_searches_no_weights(own: Place) -> None:
    store = own.open()
    publish(store, rows(2, 4))
    with pytest.raises(InvalidInput, match="if it has a sparse model"):
        store.put([chunk_of(0, X, version="v2", sparse=weights((1, 1.0)))])
    with pytest.raises(InvalidInput, match="no sparse vectors"):
        store.rankings("s", [weights((1, 1.0))], 1)


def test_rankings_of_one_search_see_the_same_version_while_others_replace_it(store: VectorStore) -> None:
    stopped, torn = threading.Event(), list[object]()

    def look() -> None:
        while not stopped.is_set():
            dense, sparse = store.rankings("s", [X, weights((1, 1.0))], 50)
            versions = {each.text.split()[0] for each in [*dense, *sparse]}
            if len(versions) != 1 or len(dense) != len(sparse):
                torn.append((versions, len(dense), len(sparse)))

    put(store, [weights((1, 1.0))] * 9, version="v0")
    looking = threading.Thread(target=look)
    looking.start()
    try:
        for number in range(1, 12):
            put(store, [weights((1, 1.0 + number))] * (5 + number % 5), version=f"v{number}")
    finally:
        stopped.set()
        looking.join()
    assert torn == []


def test_a_folder_of_an_earlier_release_opens_without_sparse_vectors(tmp_path: Path) -> None:
    """Its note names no sparse model."""
    with place("embedded", tmp_path) as own:
        store = own.open()
        publish(store, rows(2, 4))
        store.close()
        note = tmp_path / "store" / "store.json"
        note.write_text('{"identity": "model", "dimension": 4, "distance": "cosine"}')
        assert own.open().count("s") == 2
