"""What a worker keeps: bounded, and what was used longest ago goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.web.lately import LatelyUsed


def test_beyond_the_number_what_was_used_longest_ago_goes() -> None:
    kept: LatelyUsed[str] = LatelyUsed(2, 100)
    first, second = kept.put("first", 1), kept.put("second", 1)
    assert kept.get(first) == "first"
    third = kept.put("third", 1)
    assert [kept.get(name) for name in (first, second, third)] == ["first", None, "third"]


def test_beyond_the_bytes_as_many_go_as_must() -> None:
    kept: LatelyUsed[str] = LatelyUsed(10, 100)
    names = [kept.put(text, 40) for text in "ab"]
    large = kept.put("large", 90)
    assert [kept.get(name) for name in (*names, large)] == [None, None, "large"]


def test_what_grows_takes_the_place_of_others_and_not_its_own() -> None:
    kept: LatelyUsed[str] = LatelyUsed(10, 100)
    one, other = kept.put("one", 50), kept.put("other", 50)
    kept.grown(one, 60)
    assert (kept.get(one), kept.get(other)) == ("one", None)
    kept.grown(other, 60)
    assert kept.get(other) is None


def test_what_was_taken_is_there_no_more_and_leaves_its_room() -> None:
    kept: LatelyUsed[str] = LatelyUsed(10, 100)
    one, other = kept.put("one", 50), kept.put("other", 50)
    assert kept.take(one) == "one"
    assert kept.take(one) is None
    kept.put("new", 50)
    assert kept.get(other) == "other"


steps = st.lists(
    st.tuples(st.sampled_from(["put", "get", "grown", "take"]), st.integers(0, 9), st.integers(0, 50))
)


@given(steps)
def test_the_bounds_hold_and_the_newest_stays_whatever_is_done(steps: list[tuple[str, int, int]]) -> None:
    kept: LatelyUsed[int] = LatelyUsed(4, 50)
    sizes: dict[str, int] = {}
    for what, number, size in steps:
        if what == "put":
            name = kept.put(size, size)
            sizes[name] = size
            assert kept.get(name) == size
        elif sizes:
            name = list(sizes)[number % len(sizes)]
            if what == "grown" and kept.get(name) is not None:
                kept.grown(name, size)
                sizes[name] = size
            elif what == "take":
                kept.take(name)
                assert kept.get(name) is None
        there = [name for name in sizes if kept.get(name) is not None]
        assert len(there) <= 4
        assert sum(sizes[name] for name in there) <= 50


@pytest.mark.parametrize("name", ["", "0" * 16, "../up"])
def test_an_id_that_was_never_given_is_none(name: str) -> None:
    kept: LatelyUsed[int] = LatelyUsed(2, 10)
    kept.put(1, 1)
    assert kept.get(name) is None
    assert kept.take(name) is None
