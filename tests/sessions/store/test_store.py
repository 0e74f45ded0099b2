"""The store behaves the same over every engine.

`embedded` is qdrant-edge-py. `local` is qdrant-client's local mode. `rest` and `grpc` are its real clients,
against servers of the tests' own that answer by that local mode. None of them is a Qdrant server.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedshare.errors import (
    InvalidInput,
    ModelMismatch,
    NotFinite,
    StoreFailed,
    UploadIncomplete,
    ZeroVector,
)
from embedshare.sessions.store.base import Found, VectorStore, point_id
from tests.sessions.store.chunks import chunk_of, publish, rows, vector
from tests.sessions.store.places import KINDS, Place, place

X, Y = vector(1, 0, 0, 0), vector(0, 1, 0, 0)


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def store(own: Place) -> VectorStore:
    return own.open()


def texts(found: list[Found]) -> list[str]:
    return [each.text for each in found]


def test_chunks_are_found_once_their_version_is_published(store: VectorStore) -> None:
    store.put([chunk_of(0, X), chunk_of(1, X + Y, page=3, heading="Two", metadata={"a": [1, None]})])
    assert store.search("s", X, 5) == []
    assert store.count("s") == 0
    store.publish("s", "d", "v1", 2)
    first, second = store.search("s", X, 5)
    assert store.count("s") == 2
    assert first == Found(point_id("s", "d", 0), 1.0, "d", 0, "v1 0", 0, 9, None, None, {})
    assert second[2:] == ("d", 1, "v1 1", 10, 19, 3, "Two", {"a": [1, None]})
    assert second.score == pytest.approx(0.5**0.5, abs=1e-6)


def test_no_chunks_are_no_work(store: VectorStore) -> None:
    store.put([])
    assert store.search("s", X, 10_000) == []


def test_a_document_of_no_chunks_can_be_published(store: VectorStore) -> None:
    publish(store, rows(2, 4))
    store.publish("s", "d", "v2", 0)
    assert store.count("s") == 0


def test_a_new_version_replaces_the_old_one_and_keeps_the_ids_of_chunks(store: VectorStore) -> None:
    publish(store, np.stack([X, Y, X]))
    before = {each.chunk: each.id for each in store.search("s", X, 9)}
    publish(store, np.stack([X, Y]), version="v2")
    found = store.search("s", X, 9)
    assert texts(found) == ["v2 0", "v2 1"]
    assert [each.id for each in found] == [before[0], before[1]]
    assert store.count("s") == 2


def test_a_version_that_is_under_way_does_not_touch_the_visible_one(store: VectorStore) -> None:
    publish(store, np.stack([Y, Y]))
    store.put([chunk_of(number, X, version="v2") for number in range(100)])
    assert texts(store.search("s", X, 2)) == sorted(texts(store.search("s", X, 2)), key=_id_of)
    assert store.count("s") == 2
    assert {each.text[:2] for each in store.search("s", X, 50)} == {"v1"}


def _id_of(text: str) -> Any:
    return point_id("s", "d", int(text.split()[1]))


def test_a_version_with_missing_or_surplus_chunks_is_not_published(store: VectorStore) -> None:
    publish(store, np.stack([Y]))
    store.put([chunk_of(0, X, version="v2")])
    for claimed in (0, 2):
        with pytest.raises(UploadIncomplete, match="1 of the document's"):
            store.publish("s", "d", "v2", claimed)
    assert texts(store.search("s", X, 5)) == ["v1 0"]


def test_two_uploads_of_a_document_at_once_end_with_the_one_published_last(store: VectorStore) -> None:
    store.put([chunk_of(0, X, version="v1")])
    store.put([chunk_of(0, Y, version="v2")])
    store.publish("s", "d", "v2", 1)
    assert texts(store.search("s", X, 5)) == ["v2 0"]
    store.publish("s", "d", "v1", 1)
    assert texts(store.search("s", X, 5)) == ["v1 0"]


def test_chunks_are_refused_for_a_version_that_is_published(store: VectorStore) -> None:
    publish(store, np.stack([X]))
    with pytest.raises(InvalidInput, match="is published"):
        store.put([chunk_of(1, Y)])
    assert store.count("s") == 1


def test_publishing_again_changes_nothing(store: VectorStore) -> None:
    publish(store, np.stack([X]))
    store.publish("s", "d", "v1", 1)
    assert texts(store.search("s", X, 5)) == ["v1 0"]


def test_a_dropped_upload_leaves_the_visible_version_and_can_begin_again(store: VectorStore) -> None:
    publish(store, np.stack([Y]))
    store.put([chunk_of(0, X, version="v2"), chunk_of(1, X, version="v2")])
    store.drop_document("s", "d", "v2")
    assert texts(store.search("s", X, 5)) == ["v1 0"]
    publish(store, np.stack([X]), version="v2")
    assert texts(store.search("s", X, 5)) == ["v2 0"]


def test_dropping_the_published_version_by_name_deletes_the_document(store: VectorStore) -> None:
    publish(store, np.stack([Y]))
    store.drop_document("s", "d", "v1")
    assert store.search("s", Y, 5) == []
    publish(store, np.stack([X]))
    assert texts(store.search("s", X, 5)) == ["v1 0"]


def test_a_document_dropped_in_mid_upload_cannot_be_published_by_that_upload(store: VectorStore) -> None:
    publish(store, np.stack([Y]))
    publish(store, np.stack([Y]), document="other")
    store.put([chunk_of(0, X, version="v2")])
    store.drop_document("s", "d")
    store.put([chunk_of(1, X, version="v2")])
    assert {each.document for each in store.search("s", X, 5)} == {"other"}
    with pytest.raises(UploadIncomplete):
        store.publish("s", "d", "v2", 2)
    store.drop_document("s", "d", "v2")
    assert {each.document for each in store.search("s", X, 5)} == {"other"}


def test_dropping_what_is_not_there_changes_nothing(store: VectorStore) -> None:
    publish(store, np.stack([Y]))
    store.drop_document("s", "unknown")
    store.drop_document("s", "d", "unknown")
    store.drop_session("unknown")
    assert store.count("s") == 1


def test_a_dropped_session_is_gone_and_others_stay(store: VectorStore) -> None:
    publish(store, np.stack([X, Y]))
    publish(store, np.stack([X]), session="t")
    store.put([chunk_of(0, X, document="unfinished")])
    store.drop_session("s")
    assert (store.count("s"), store.count("t")) == (0, 1)
    assert store.search("s", X, 5) == []
    with pytest.raises(UploadIncomplete):
        store.publish("s", "unfinished", "v1", 1)
    publish(store, np.stack([Y]), version="v9")
    assert texts(store.search("s", X, 5)) == ["v9 0"]


def test_a_session_finds_its_own_chunks_alone(store: VectorStore) -> None:
    publish(store, np.stack([Y]))
    publish(store, np.stack([X]), session="t")
    assert texts(store.search("s", X, 5)) == ["v1 0"]
    assert store.search("nobody", X, 5) == []


def test_what_was_published_is_there_after_reopening_and_the_rest_is_not(own: Place) -> None:
    store = own.open()
    publish(store, np.stack([X, Y]))
    store.put([chunk_of(0, X, version="v2"), chunk_of(0, X, document="other")])
    store.close()
    again = own.open()
    assert texts(again.search("s", X, 5)) == ["v1 0", "v1 1"]
    for document, version in (("d", "v2"), ("other", "v1")):
        with pytest.raises(UploadIncomplete, match="0 of"):
            again.publish("s", document, version, 1)


def test_a_document_that_has_lost_a_chunk_is_not_shown_in_part(own: Place) -> None:
    store = own.open()
    publish(store, np.stack([X, Y]))
    publish(store, np.stack([Y]), document="whole")
    from embedshare.sessions.store.filters import AnyOf, Where, equal

    lost = Where([equal("document", "d"), AnyOf("chunk", (1,))])
    store._engine.delete(lost)  # type: ignore[attr-defined]
    store.close()
    assert [each.document for each in own.open().search("s", X, 5)] == ["whole"]


def test_equal_scores_are_ordered_by_id_and_so_after_reopening(own: Place) -> None:
    store = own.open()
    publish(store, np.stack([X] * 60))
    expected = sorted(point_id("s", "d", number) for number in range(60))
    for top_k in (1, 3, 44, 59, 60, 100):
        assert [each.id for each in store.search("s", X, top_k)] == expected[:top_k]
    store.close()
    assert [each.id for each in own.open().search("s", X, 7)] == expected[:7]


def test_visible_chunks_are_found_behind_any_number_of_hidden_ones(store: VectorStore) -> None:
    publish(store, np.stack([Y, Y + X]))
    store.put([chunk_of(number, X, document="big") for number in range(300)])
    assert [each.chunk for each in store.search("s", X, 2)] == [1, 0]


def test_the_nearest_are_the_exact_ones(store: VectorStore) -> None:
    vectors = rows(500, 4)
    publish(store, vectors)
    query = rows(1, 4, seed=2)[0]
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    found = store.search("s", query, 20)
    assert [each.chunk for each in found] == list(np.argsort(-cosines)[:20])
    assert [each.score for each in found] == pytest.approx(np.sort(cosines)[::-1][:20], abs=1e-6)


def test_scores_are_within_1_whatever_the_vectors_length(own: Place) -> None:
    store = own.open(dimension=384)
    vectors = rows(200, 384) * np.logspace(-18, 18, 200, dtype=np.float64)[:, None].astype(np.float32)
    publish(store, vectors)
    for number, row in enumerate(vectors):
        best = store.search("s", row, 1)[0]
        assert best.chunk == number
        assert 0.99999 < best.score <= 1.0


def test_a_threshold_leaves_out_the_very_score(store: VectorStore) -> None:
    publish(store, np.stack([X, X + Y]))
    second = store.search("s", X, 2)[1].score
    assert len(store.search("s", X, 2, score_threshold=second)) == 1
    assert len(store.search("s", X, 2, score_threshold=np.nextafter(second, 0))) == 2
    assert store.search("s", X, 2, score_threshold=1.0) == []


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([np.nan, 0, 0, 0], NotFinite),
        ([0, np.inf, 0, 0], NotFinite),
        ([0, 0, -np.inf, 0], NotFinite),
        ([0, 0, 0, 0], ZeroVector),
        ([1, 0, 0], InvalidInput),
    ],
)
def test_a_vector_without_a_direction_is_refused_by_its_chunks_number(
    store: VectorStore, values: list[float], error: type[InvalidInput]
) -> None:
    with pytest.raises(error, match="chunk 7") as refused:
        store.put([chunk_of(6, X), chunk_of(7, vector(*values))])
    assert type(refused.value) is error
    assert refused.value.fields["chunk"] == 7
    with pytest.raises(UploadIncomplete, match="0 of"):
        store.publish("s", "d", "v1", 1)
    with pytest.raises(error, match="query's vector"):
        store.search("s", vector(*values), 1)


@pytest.mark.parametrize("top_k", [0, -1, True, 1.5, "3", 10_001, 10**30])
def test_a_wrong_top_k_is_refused(store: VectorStore, top_k: Any) -> None:
    with pytest.raises(InvalidInput, match="top_k"):
        store.search("s", X, top_k)


@pytest.mark.parametrize(
    "changed",
    [
        {"id": point_id("s", "d", 3)},
        {"chunk": -1},
        {"chunk": True},
        {"chunk": np.int64(1)},
        {"text": "\ud800"},
        {"session": ""},
        {"version": ""},
        {"metadata": {"a": {1, 2}}},
        {"metadata": {"a": 2**63}},
        {"metadata": {"a": float("nan")}},
        {"metadata": {1: "a"}},
        {"metadata": ["a"]},
    ],
)
def test_a_chunk_that_no_engine_could_keep_is_refused(store: VectorStore, changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="chunk"):
        store.put([chunk_of(0, X)._replace(**changed)])


def test_another_models_vectors_are_refused(own: Place) -> None:
    store = own.open("model", 4)
    publish(store, np.stack([X]))
    store.close()
    for identity, dimension in (("other", 4), ("model", 8)):
        with pytest.raises(ModelMismatch):
            own.open(identity, dimension)
    assert own.open("model", 4).count("s") == 1


def test_an_unknown_type_of_a_field_is_refused_and_the_store_can_be_opened_then(own: Place) -> None:
    with pytest.raises(InvalidInput, match="allowed: keyword, integer, float, boolean, date"):
        own.open(schema={"a": "text"})
    assert own.open().count("s") == 0


def test_searches_see_a_version_as_a_whole_while_others_replace_it(store: VectorStore) -> None:
    """Versions have 20 to 26 chunks, and each search that sees another number has seen a part."""
    seen, stopped = set[str](), threading.Event()
    torn: list[list[str]] = []

    def look() -> None:
        while not stopped.is_set():
            found = store.search("s", X, 100)
            versions = {each.text.split()[0] for each in found}
            seen.update(versions)
            if len(versions) != 1 or len(found) != 20 + int(versions.pop()[1:]) % 7:
                torn.append(texts(found))

    publish(store, np.stack([X + number * Y for number in range(20)]), version="v0")
    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 15):
            vectors = np.stack([X + each * Y for each in range(20 + number % 7)])
            publish(store, vectors, version=f"v{number}")
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    assert torn == []
    assert len(seen) > 1


def test_several_threads_upload_at_once(store: VectorStore) -> None:
    vectors, failures = rows(60, 4), list[BaseException]()

    def upload(document: str) -> None:
        try:
            for first in range(0, 60, 10):
                store.put(
                    [chunk_of(each, vectors[each], document=document) for each in range(first, first + 10)]
                )
            store.publish("s", document, "v1", 60)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=upload, args=(f"d{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.count("s") == 360
    assert {each.document for each in store.search("s", vectors[0], 6)} == {f"d{each}" for each in range(6)}


def test_a_closed_store_says_so_and_may_be_closed_again(tmp_path: Path) -> None:
    with place("embedded", tmp_path) as own:
        store = own.open()
        store.close()
        store.close()
        with pytest.raises(StoreFailed):
            store.search("s", X, 1)
