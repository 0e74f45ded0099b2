"""When a process that ended is started again, and when that is given up. Pure: the clock is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

#: Pauses before a restart, in seconds: they double from the first to the second.
BACKOFF_S = (0.5, 30.0)
#: This many ends within this many seconds are a crash loop.
CRASH_LOOP = (5, 120.0)


@dataclass
class RestartPolicy:
    """One process's ends, and what follows from them."""

    ends: deque[float] = field(default_factory=deque)

    def restart_in(self, now: float) -> float | None:
        """Seconds until the process that ended at `now` is to be started again; None for never."""
        most, within_s = CRASH_LOOP
        self.ends.append(now)
        while now - self.ends[0] > within_s:
            self.ends.popleft()
        if len(self.ends) >= most:
            return None
        first_s, longest_s = BACKOFF_S
        return min(longest_s, first_s * 2.0 ** (len(self.ends) - 1))
