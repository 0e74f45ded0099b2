"""Scales the number of workers with the load. Pure: no clock, no processes.

A worker is as busy as the busier of its threads and its core. Its threads: requests in flight, of as many as
it answers at once. Its core: Python runs on one. More are started when the workers were busy on average for a
while; fewer when the remaining ones would be idle, for longer. The gap between the two, and the times, keep
the number from oscillating.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

#: Mean busyness at which another worker starts, and below which the remaining ones must be for one to stop.
BUSY, IDLE = 0.7, 0.35


class WorkerLoad(NamedTuple):
    """One worker's load at a moment; None if it did not answer, as a busy one does."""

    in_flight: int | None
    """Requests in flight or queued."""

    threads: int
    """Requests that it answers at once."""

    cpu: float
    """Cores in use; Python uses one."""

    @property
    def busy(self) -> float:
        """From 0 for idle to 1."""
        waiting = 1.0 if self.in_flight is None else self.in_flight / self.threads
        return min(1.0, max(waiting, self.cpu))


class Step(NamedTuple):
    """The wanted number of workers, and the reason."""

    workers: int
    reason: str


@dataclass
class Scaling:
    """Decides, from successive loads, between `least` and `most` workers.

    `up_s` and `down_s`: seconds that the workers must have been busy, or idle, before one starts or stops.
    """

    least: int
    most: int
    up_s: float
    down_s: float
    _busy_since: float | None = None
    _idle_since: float | None = None

    def step(self, now: float, loads: Sequence[WorkerLoad]) -> Step | None:
        """The change to make now, if any. `loads`: those of all workers, at `now` seconds of any clock."""
        count = len(loads)
        if not self.least <= count <= self.most:
            return self._decided(min(max(count, self.least), self.most), "outside of the requested range")
        mean = sum(load.busy for load in loads) / count
        after = mean * count / (count - 1) if count > 1 else 1.0
        self._busy_since = _since(self._busy_since, now, mean >= BUSY and count < self.most)
        self._idle_since = _since(self._idle_since, now, after < IDLE and count > self.least)
        if self._busy_since is not None and now - self._busy_since >= self.up_s:
            return self._decided(count + 1, f"{now - self._busy_since:.0f} s busy, {mean:.0%} now")
        if self._idle_since is not None and now - self._idle_since >= self.down_s:
            return self._decided(count - 1, f"{now - self._idle_since:.0f} s idle, {mean:.0%} now")
        return None

    def _decided(self, workers: int, reason: str) -> Step:
        """Restart the measurement: the next step is judged by this one's effect."""
        self._busy_since = self._idle_since = None
        return Step(workers, reason)


def _since(before: float | None, now: float, holds: bool) -> float | None:
    """The time since when a condition holds; None while it does not."""
    if not holds:
        return None
    return now if before is None else before
