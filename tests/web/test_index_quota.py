"""Which indexes are evicted: a key within its share keeps the indexes that it uses."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from embedshare.web.index_quota import UNUSED_S, Held, victims

MOST, MOST_BYTES, NOW = 8, 800, 1_000_000.0


def held(owner: str, count: int, size: int = 10, used_s: float = NOW - 100) -> list[Held]:
    return [Held(f"{owner}{number}", owner, size, used_s + number) for number in range(count)]


def gone(before: list[Held], newest: Held) -> list[str] | None:
    found = victims(before, newest, MOST, MOST_BYTES, NOW)
    return None if found is None else [one.name for one in found]


def new(owner: str, size: int = 10) -> Held:
    return Held("new", owner, size, NOW)


def test_one_owner_alone_has_all_and_loses_what_it_used_longest_ago() -> None:
    assert gone(held("a", 7), new("a")) == []
    assert gone(held("a", 8), new("a")) == ["a0"]
    assert gone(held("a", 8, size=100), new("a", 250)) == ["a0", "a1", "a2"]


def test_an_owner_that_makes_index_after_index_evicts_its_own() -> None:
    before = held("quiet", 2, used_s=NOW - 1000)
    for number in range(20):
        newest = Held(f"flood{number}", "flood", 10, NOW + number)
        found = victims(before, newest, MOST, MOST_BYTES, NOW + number)
        assert found is not None
        before = [one for one in [*before, newest] if one not in found]
    assert Counter(one.owner for one in before) == {"quiet": 2, "flood": 6}


def test_an_owner_that_comes_later_has_its_share_from_the_one_that_holds_most() -> None:
    assert gone([*held("most", 6), *held("few", 2, used_s=NOW - 1000)], new("late")) == ["most0"]
    bytes_held = [*held("large", 2, size=300), *held("few", 2, size=100, used_s=NOW - 1000)]
    assert gone(bytes_held, new("late", 100)) == ["large0"]


def test_an_index_larger_than_its_owner_s_share_is_refused_while_others_use_theirs() -> None:
    others = held("other", 4, size=100)
    assert gone(others, new("large", 401)) is None
    assert gone(others, new("large", 400)) == []
    assert gone(held("other", 5, size=100), new("large", 400)) == ["other0"]


def test_an_index_without_use_for_a_day_is_evicted_first_whoever_owns_it() -> None:
    forgotten = held("gone", 3, size=200, used_s=NOW - UNUSED_S - 10)
    assert gone([*forgotten, *held("a", 2, size=50)], new("b", 600)) == ["gone0", "gone1", "gone2"]


ITEMS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 400), st.integers(0, 200_000)), max_size=MOST
)


@given(ITEMS, st.sampled_from("abcd"), st.integers(1, MOST_BYTES))
def test_the_bounds_hold_and_an_owner_of_no_more_than_a_share_loses_nothing_that_it_uses(
    items: list[tuple[str, int, int]], owner: str, size: int
) -> None:
    before: list[Held] = []
    for number, (whose, bytes_held, age) in enumerate(items):
        if sum(one.size for one in before) + bytes_held <= MOST_BYTES:
            before.append(Held(str(number), whose, bytes_held, NOW - age))
    newest = Held("new", owner, size, NOW)
    found = victims(before, newest, MOST, MOST_BYTES, NOW)
    owners = {one.owner for one in [*before, newest]}
    if found is None:
        assert size > MOST_BYTES / len(owners)
        return
    after = [one for one in [*before, newest] if one not in found]
    assert newest in after
    assert len(after) <= MOST
    assert sum(one.size for one in after) <= MOST_BYTES
    for other in owners - {owner}:
        own = [one for one in before if one.owner == other]
        modest = len(own) <= MOST / len(owners) and sum(one.size for one in own) <= MOST_BYTES / len(owners)
        if modest:
            assert all(NOW - one.used_s > UNUSED_S for one in own if one in found)
