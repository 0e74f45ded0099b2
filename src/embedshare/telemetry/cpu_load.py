"""Tells whether this machine's processor has time to spare."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

#: Seconds between two readings of the cores' time, at least: the system counts it in hundredths.
LOOK_EVERY_S = 0.05
#: Seconds without a question after which only the present load counts.
STALE_AFTER_S = 0.5
#: The share of the cores' time, of all programs together, above which none is spare
#: (docs/decisions/014-coalescing.md).
BUSY_SHARE = 0.6


class CpuLoad:
    """The machine's cores together. `read` gives the seconds that they spent in each state since the start,
    as `psutil.cpu_times` does."""

    def __init__(
        self, read: Callable[[], Any] = psutil.cpu_times, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._looked = float("-inf")
        self._idle_s = self._total_s = 0.0
        self._is_busy = False

    @property
    def is_busy(self) -> bool:
        """Whether it had hardly time to spare between the last two readings; False if these are long ago."""
        now = self._clock()
        if now - self._looked >= LOOK_EVERY_S:
            stale, self._looked = now - self._looked > STALE_AFTER_S, now
            self._look(stale)
        return self._is_busy

    def _look(self, stale: bool) -> None:
        times = self._read()
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        # Guests' time is counted in "user" and "nice" again (proc_stat(5)).
        total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        passed_s, idle_s_then = total_s - self._total_s, self._idle_s
        self._idle_s, self._total_s = idle_s, total_s
        if stale:
            self._is_busy = False
        elif passed_s > 0:
            self._is_busy = 1 - (idle_s - idle_s_then) / passed_s > BUSY_SHARE
