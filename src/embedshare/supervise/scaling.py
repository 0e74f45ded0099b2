"""How many workers a load needs. Pure: no clock, no processes.

A worker is as busy as the busier of its threads (requests under way, of as many as it answers at once) and
its core (Python runs on one at a time). More are started when the workers were busy on average for a while,
fewer when what is left would still be idle, for longer: the gap between the two, and the times, keep the
number from swinging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

#: Mean busyness at which another worker is wanted, and below which those that stay must be for one to go.
BUSY, IDLE = 0.7, 0.35


class WorkerLoad(NamedTuple):
    """What one worker does at a moment; None where it did not tell, which is what a busy one does."""

    in_flight: int | None
    """Requests that it answers or that wait in it"""

    threads: int
    """Requests that it answers at once"""

    cpu: float
    """Cores in use, of which Python has one"""

    @property
    def busy(self) -> float:
        """From 0 for idle to 1."""
        waiting = 1.0 if self.in_flight is None else self.in_flight / self.threads
        return min(1.0, max(waiting, self.cpu))


class Step(NamedTuple):
    """The number of workers that is wanted, and why."""

    workers: int
    reason: str


@dataclass
class Scaling:
    """Decides, from loads that come one after another, between `least` and `most` workers.

    `up_s` and `down_s`: for how long the workers must have been busy, or idle, before one comes or goes.
    """

    least: int
    most: int
    up_s: float
    down_s: float
    _busy_since: float | None = None
    _idle_since: float | None = None

    def step(self, now: float, loads: Sequence[WorkerLoad]) -> Step | None:
        """What to change now, if anything. `loads`: those of all workers, at `now` seconds of any clock."""
        count = len(loads)
        if not self.least <= count <= self.most:
            return self._decided(min(max(count, self.least), self.most), "outside of what was asked for")
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
        """Begin to measure anew: the next step is judged by what this one changes."""
        self._busy_since = self._idle_since = None
        return Step(workers, reason)


def _since(before: float | None, now: float, holds: bool) -> float | None:
    """Since when something holds; None while it does not."""
    if not holds:
        return None
    return now if before is None else before
