"""The most frequent items of a stream, counted in bounded memory.

Misra and Gries's summary, cut as in Anderson et al., "A High-Performance Algorithm for Identifying Frequent
Items in Data Streams" (2017): seldom, and by many counts at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Frequent(Generic[T]):
    """Counts at most 2 * `capacity` items at once.

    An item's count is at most `uncertainty` below the number of times that it came, and never above.
    `uncertainty` is at most total / (capacity + 1): an item that came more often is counted.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.counts: dict[T, int] = {}
        self.uncertainty = 0
        self.total = 0

    def add(self, items: Iterable[T]) -> None:
        """Count each of these items once more."""
        counts = self.counts
        for item in items:
            counts[item] = counts.get(item, 0) + 1
            self.total += 1
            if len(counts) > 2 * self._capacity:
                self._cut()
                counts = self.counts

    def top(self, number: int) -> list[tuple[T, int]]:
        """The items of the highest counts, at most `number`, and their counts; the highest first."""
        return heapq.nlargest(number, self.counts.items(), key=lambda one: one[1])

    def _cut(self) -> None:
        """Lower every count by the one of rank `capacity` + 1, of which at most `capacity` items are left."""
        least = sorted(self.counts.values(), reverse=True)[self._capacity]
        self.counts = {item: count - least for item, count in self.counts.items() if count > least}
        self.uncertainty += least
