"""Whether a small batch is worth holding back for a moment, because others are about to come.

Pure: no threads, no clock, no model. A batch costs a fixed sum, whatever is in it, so fewer and fuller ones
serve callers that come again and again sooner. The scheduler holds batches back by it
(docs/decisions/002-batch-delay.md), a web worker requests (014-coalescing.md).
"""

from __future__ import annotations

#: A batch is held back for as long as so many take.
_PATIENCE_BATCHES = 2
#: And only where at least so many calls come while one is computed: else the model keeps up by itself.
_CALLS_A_BATCH = 1.5
#: Nobody is kept waiting for others longer than this.
MOST_PATIENCE_S = 0.03
#: Those who are waited for, of those who were there when calls came.
_USUALLY = 1.5
#: How fast what was seen is forgotten: calls, or batches, after which a third of it is left.
_GAP_MEMORY, _CALLS_MEMORY, _BATCH_MEMORY = 16, 64, 8
#: Of a second without a call no more is learned than that calls are rare.
_LONGEST_GAP_S = 1.0


class BatchDelay:
    """What the calls of a lane have been like lately.

    Times are seconds of one monotonic clock. A call is under way from its arrival to its answer.
    """

    def __init__(self) -> None:
        self._under_way = 0
        self._others = self._peak = 0.0
        self._gap_s = _LONGEST_GAP_S
        self._batch_s = 0.0
        self._last_arrival = float("-inf")

    def arrived(self, now: float) -> None:
        """A call has come."""
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
        """A batch of the lane has taken so long."""
        self._batch_s += (seconds - self._batch_s) / _BATCH_MEMORY

    @property
    def patience_s(self) -> float:
        """How long a batch may be held back: as long as two take, and not at all where too few come in that
        time."""
        if _CALLS_A_BATCH * self._gap_s >= self._batch_s:
            return 0.0
        return min(_PATIENCE_BATCHES * self._batch_s, MOST_PATIENCE_S)

    @property
    def usual(self) -> int:
        """How many calls are under way as a rule, and never more than were lately."""
        return round(min(_USUALLY * self._others, self._peak))

    def is_here(self, waiting: int, leaders: int) -> bool:
        """Whether holding back gains nothing more: as many are under way as usually are, or of them as many
        wait as one of `leaders` is to take."""
        return self.usual <= max(self._under_way, waiting * leaders)
