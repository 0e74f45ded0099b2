"""Counts of the most frequent items: never above the truth, and below it by a bounded number."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from embedshare.cache.frequent import Frequent


@given(st.lists(st.integers(0, 40) | st.just(7)), st.integers(1, 12))
def test_counts_are_within_the_bounds_and_the_memory(items: list[int], capacity: int) -> None:
    found: Frequent[int] = Frequent(capacity)
    for start in range(0, len(items), 3):
        found.add(items[start : start + 3])
        assert len(found.counts) <= 2 * capacity
    truth = Counter(items)
    assert found.total == len(items)
    assert found.uncertainty * (capacity + 1) <= len(items)
    for item, times in truth.items():
        assert times - found.uncertainty <= found.counts.get(item, 0) <= times
    assert set(found.counts) <= set(truth)
    assert {item for item, times in truth.items() if times > found.uncertainty} <= set(found.counts)
    top = found.top(3)
    assert [count for _, count in top] == sorted(found.counts.values(), reverse=True)[:3]


def test_what_fits_is_counted_exactly() -> None:
    found: Frequent[str] = Frequent(3)
    found.add("abcabcabd" * 100)
    assert found.top(2) == [("a", 300), ("b", 300)]
    assert (found.uncertainty, found.counts["c"], found.counts["d"]) == (0, 200, 100)
