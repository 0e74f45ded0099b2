"""Cumulative histograms: percentiles and rates of any span are differences of two snapshots.

An observation costs a bisection and two additions, and no memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TypedDict

#: Upper bounds for times in milliseconds: two to five in each doubling of a call's usual time.
MILLISECONDS = (
    0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0,
    75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 750.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0, 60_000.0,
)  # fmt: skip
#: For sequences in a batch.
SEQUENCES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
#: For tokens in a batch.
TOKENS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16_384, 65_536)


class Snapshot(TypedDict):
    """A histogram at one moment, in plain values."""

    bounds: list[float]
    """The upper bounds of the buckets, each part of its bucket."""

    counts: list[int]
    """Observations in each bucket, and last those above all bounds; not cumulative."""

    sum: float


class Histogram:
    """Observations by size. Its owner ensures that one thread at a time observes or takes a snapshot."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        if not self._bounds or any(
            low >= high for low, high in zip(self._bounds, self._bounds[1:], strict=False)
        ):
            raise ValueError("a histogram's bounds are numbers in ascending order, one at least")
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value, in the first bucket whose bound is not below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def snapshot(self) -> Snapshot:
        """All observations so far; a copy."""
        return {"bounds": list(self._bounds), "counts": list(self._counts), "sum": self._sum}


def quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """The value that a share `q` (0 to 1) of the observations does not exceed; None without observations.

    As in Prometheus, values within a bucket count as spread evenly, and those above all bounds as the last
    bound. `counts` may be the difference of two snapshots.
    """
    total = sum(counts)
    if total <= 0:
        return None
    rank, below = q * total, 0
    for number, count in enumerate(counts[: len(bounds)]):
        if count > 0 and below + count >= rank:
            low = bounds[number - 1] if number else min(0.0, bounds[0])
            return low + (bounds[number] - low) * max(0.0, rank - below) / count
        below += count
    return float(bounds[-1])
