"""Decides whether to hold a small batch back for a moment, because more calls are expected.

Pure: no threads, no clock, no model. A batch has a fixed cost, so fewer and fuller ones serve callers that
come repeatedly sooner. The scheduler delays batches by it (docs/decisions/002-batch-delay.md), a web worker
requests (014-coalescing.md).
"""

from __future__ import annotations

#: The longest delay, in durations of a batch.
_PATIENCE_BATCHES = 2
#: The fewest calls that must arrive during one batch: with fewer the model keeps up by itself.
_CALLS_A_BATCH = 1.5
#: The longest delay, in seconds.
MOST_PATIENCE_S = 0.03
#: The share of the usual calls in flight that a batch waits for.
_USUALLY = 1.5
#: How fast observations fade: calls, or batches, after which a third of their weight is left.
_GAP_MEMORY, _CALLS_MEMORY, _BATCH_MEMORY = 16, 64, 8
#: Seconds without a call beyond which calls just count as rare.
_LONGEST_GAP_S = 1.0


class BatchDelay:
    """The recent calls of a lane.

    Times are seconds of one monotonic clock. A call is in flight from its arrival to its answer.
    """

    def __init__(self) -> None:
        self._under_way = 0
        self._others = self._peak = 0.0
        self._gap_s = _LONGEST_GAP_S
        self._batch_s = 0.0
        self._last_arrival = float("-inf")

    def arrived(self, now: float) -> None:
        """A call has arrived."""
        self._others += (self._under_way - self._others) / _CALLS_MEMORY
        self._under_way += 1
        self._peak = max(self._under_way, self._peak - self._peak / _CALLS_MEMORY)
        gap_s = min(now - self._last_arrival, _LONGEST_GAP_S)
        self._gap_s += (gap_s - self._gap_s) / _GAP_MEMORY
        self._last_arrival = now

    def left(self) -> None:
        """A call has its answer, or will have none."""
        self._under_way -= 1

    def computed(self, seconds: float) -> None:
        """A batch of the lane took this long."""
        self._batch_s += (seconds - self._batch_s) / _BATCH_MEMORY

    @property
    def patience_s(self) -> float:
        """Seconds that a batch may be held back: the duration of two, and 0 if too few calls arrive in that
        time."""
        if _CALLS_A_BATCH * self._gap_s >= self._batch_s:
            return 0.0
        return min(_PATIENCE_BATCHES * self._batch_s, MOST_PATIENCE_S)

    @property
    def usual(self) -> int:
        """The usual number of calls in flight, never more than were lately."""
        return round(min(_USUALLY * self._others, self._peak))

    def is_here(self, waiting: int, leaders: int) -> bool:
        """Whether holding back gains nothing more: as many calls as usual are in flight, or the share that
        one of `leaders` takes is queued."""
        return self.usual <= max(self._under_way, waiting * leaders)
