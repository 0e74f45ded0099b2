"""Filters and the metadata that they find, over every engine."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedshare.errors import InvalidInput
from embedshare.sessions.store import metadata
from embedshare.sessions.store.base import VectorStore
from tests.sessions.store.chunks import chunk_of, vector
from tests.sessions.store.places import KINDS, Place, place

X = vector(1, 0, 0, 0)
SCHEMA = {"tag": "keyword", "year": "integer", "price": "float", "ok": "boolean", "when": "date"}


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place(request.param, tmp_path) as found:
        yield found


def _with(store: VectorStore, *metadata: dict[str, Any], session: str = "s", **more: Any) -> VectorStore:
    store.put([chunk_of(number, X, session, metadata=each, **more) for number, each in enumerate(metadata)])
    store.publish(session, "d", "v1", len(metadata))
    return store


def _found(store: VectorStore, filters: Mapping[str, Any], session: str = "s") -> list[int]:
    return sorted(each.chunk for each in store.search(session, X, 20, filters))


CASES: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [0, 1, 2]),
    ({"tag": "a"}, [0, 1]),
    ({"tag": ["b", "c"]}, [1, 2]),
    ({"tag": "none"}, []),
    ({"year": 2020}, [0]),
    ({"year": [2020, 2021]}, [0, 1]),
    ({"year": {"gt": 2020}}, [1, 2]),
    ({"year": {"gte": 2020, "lt": 2022}}, [0, 1]),
    ({"year": {"gte": 2020.5}}, [1, 2]),
    ({"price": 2}, [1]),
    ({"price": [0.5, 2.0]}, [0, 1]),
    ({"price": {"lte": 2}}, [0, 1]),
    ({"ok": True}, [0]),
    ({"ok": False}, [1]),
    ({"ok": [True, False]}, [0, 1]),
    ({"when": "2026-01-01"}, [0]),
    ({"when": {"gte": "2026-01-01T00:00:00+02:00", "lt": "2026-02-01"}}, [0]),
    ({"when": {"gt": datetime.datetime(2026, 1, 1)}}, [1]),
    ({"tag": "a", "ok": False}, [1]),
    ({"document": "d", "chunk": [0, 2]}, [0, 2]),
    ({"page": {"gte": 1}, "heading": "H"}, [0, 1, 2]),
    ({"heading": "other"}, []),
    # undeclared
    ({"free": "text"}, [0]),
    ({"free": 7}, [1]),
    ({"free": 7.0}, [1]),
    ({"free": True}, [2]),
    ({"free": "true"}, []),
    ({"free": 1}, []),
    ({"free": {"gt": 6.5}}, [1]),
    ({"free": ["text", 7, True]}, [0, 1, 2]),
    ({"a.b [c]": "dotted"}, [0]),
    ({"ünïcode": 1.5}, [1]),
    ({"huge": 1.9129227050103194e25}, [2]),
    ({"huge": 1.91e25}, []),
]


@pytest.fixture
def filled(own: Place) -> VectorStore:
    return _with(
        own.open(schema=SCHEMA),
        {"tag": "a", "year": 2020, "price": 0.5, "ok": True, "when": "2026-01-01", "free": "text",
         "a.b [c]": "dotted"},
        {"tag": ["a", "b"], "year": 2021, "price": 2, "ok": False, "when": "2026-03-01T10:00:00Z", "free": 7,
         "ünïcode": 1.5},
        {"tag": "c", "year": 2**62 + 1, "price": None, "free": True, "nested": {"tag": "a"},
         "huge": 1.9129227050103194e25},
        page=1,
        heading="H",
    )  # fmt: skip


def test_filters_find_what_they_say(filled: VectorStore) -> None:
    assert [(wanted, _found(filled, wanted)) for wanted, _ in CASES] == CASES


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"tag": 1}, "is keyword: a int is no text"),
        ({"year": "2020"}, "is integer: a str is no whole number"),
        ({"year": 2020.0}, "is integer"),
        ({"year": True}, "is integer"),
        ({"year": 2**63}, "at most 64 bits"),
        ({"price": "cheap"}, "is float"),
        ({"price": float("nan")}, "a number is finite"),
        ({"ok": 1}, "is boolean"),
        ({"when": "yesterday"}, "write a date as 2026-11-29"),
        ({"when": 5}, "is no date"),
        ({"tag": []}, "is an empty list"),
        ({"tag": {"gte": "a"}}, "needs numbers, or a field declared as date"),
        ({"year": {}}, "has one or more of gt, gte, lt, lte"),
        ({"year": {"above": 1}}, "has one or more of gt, gte, lt, lte"),
        ({"free": {"gte": "2026-01-01"}}, "needs numbers, or a field declared as date"),
        ({"free": None}, "text, number, boolean"),
        ({"free": [[1]]}, "text, number, boolean"),
        ({1: "a"}, "a filter's name is a text"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(tmp_path: Path, wanted: Any, reason: str) -> None:
    with place("embedded", tmp_path) as own, pytest.raises(InvalidInput) as refused:
        own.open(schema=SCHEMA).search("s", X, 1, wanted)
    assert reason in refused.value.message


@pytest.mark.parametrize(
    "wrong",
    [{"tag": 1}, {"year": 1.5}, {"year": [2020, "x"]}, {"price": "1"}, {"ok": "true"}, {"when": "soon"},
     {"when": "0001-01-01T00:00:00+10:00"}, {"tag": {"a": 1}}],
)  # fmt: skip
def test_a_declared_field_of_another_type_is_refused_before_anything_is_stored(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with place("embedded", tmp_path) as own:
        store = own.open(schema=SCHEMA)
        with pytest.raises(InvalidInput, match="chunk 1: the field") as refused:
            _with(store, {"year": 1}, wrong)
        assert refused.value.fields == {"chunk": 1, "field": next(iter(wrong))}
        store.publish("s", "d", "v1", 0)


def test_two_sessions_may_declare_one_name_with_two_types(own: Place) -> None:
    store = own.open()
    store.declare("s", {"year": "integer"})
    store.declare("t", {"year": "keyword"})
    _with(store, {"year": 2020})
    _with(store, {"year": "2020"}, session="t")
    assert (_found(store, {"year": 2020}), _found(store, {"year": "2020"}, "t")) == ([0], [0])
    with pytest.raises(InvalidInput, match="is keyword"):
        _with(store, {"year": 2020}, session="t")


def test_a_declaration_lasts_until_its_session_is_dropped(own: Place) -> None:
    store = own.open()
    store.declare("s", {"year": "integer"})
    store.drop_session("s")
    assert _found(_with(store, {"year": "old"}), {"year": "old"}) == [0]


@pytest.mark.parametrize("name", ["", "page", "document", "\ud800", 5])
def test_a_name_that_no_field_can_have_is_refused(tmp_path: Path, name: Any) -> None:
    with place("embedded", tmp_path) as own, pytest.raises(InvalidInput):
        own.open().declare("s", {name: "keyword"})


def test_a_long_text_is_kept_and_not_found_by_filters_unless_its_field_is_declared(own: Place) -> None:
    store, text = own.open(schema={"tag": "keyword"}), "x" * (metadata.KEYWORD_CHARS + 1)
    _with(store, {"tag": text, "free": text})
    assert (_found(store, {"tag": text}), _found(store, {"free": text})) == ([0], [])
    assert store.search("s", X, 1)[0].metadata == {"tag": text, "free": text}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorStore]:
    """One store for all examples of a property."""
    with place("embedded", tmp_path_factory.mktemp("metadata")) as found:
        yield found.open()


@settings(max_examples=60)
@given(metadata=st.dictionaries(NAMES, VALUES, max_size=4))
def test_metadata_comes_back_as_it_was_sent(embedded: VectorStore, metadata: dict[str, Any]) -> None:
    embedded.drop_session("s")
    _with(embedded, metadata)
    found = embedded.search("s", X, 1)[0].metadata
    assert json.dumps(found, sort_keys=True) == json.dumps(metadata, sort_keys=True)


def test_numpy_values_and_dates_become_json(own: Place) -> None:
    given = {
        "i": np.int64(5), "f": np.float32(0.5), "b": np.bool_(True), "t": (1, 2),
        "d": datetime.date(2026, 1, 2), "at": datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone.utc),
    }  # fmt: skip
    store = _with(own.open(), given)
    expected: dict[str, Any] = {
        "i": 5,
        "f": 0.5,
        "b": True,
        "t": [1, 2],
        "d": "2026-01-02",
        "at": "2026-01-02T03:00:00+00:00",
    }
    assert store.search("s", X, 1)[0].metadata == expected


@given(
    one=st.tuples(NAMES, st.sampled_from(metadata.KINDS)),
    other=st.tuples(NAMES, st.sampled_from(metadata.KINDS)),
)
def test_no_two_fields_or_types_share_a_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (metadata.key(*one) == metadata.key(*other)) == (one == other)


@given(st.datetimes(timezones=st.just(datetime.timezone.utc)))
def test_a_date_is_the_same_instant_in_every_spelling(at: datetime.datetime) -> None:
    spellings = (at, at.isoformat(), at.isoformat()[:-6], at.isoformat()[:-6] + "Z")
    (written,) = {metadata.copied("when", each, "date") for each in spellings}
    assert datetime.datetime.fromisoformat(written[:-1]) == at.replace(tzinfo=None)
