"""When a process that ended is started again, and when that is given up. Pure: no clock, no processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from embedshare.backoff import Backoff

#: Pauses before a restart, in seconds: they double with each failed start in a row.
PAUSES = Backoff(0.2, 30.0)
#: A process that was ready for as long has not failed to start, whatever ended it then.
SETTLED_S = 1.0
#: So many failed starts in a row are a crash loop, however long each of them took.
CRASH_LOOP = 6
#: This many faults within this many seconds are reported as the model's.
FAULTS = 3
FAULTS_WITHIN_S = 600.0


@dataclass
class Faults:
    """One process's ends by a fault of its own, such as a division by zero in a library."""

    moments: list[float] = field(default_factory=list)

    def note(self, now: float) -> bool:
        """One more; whether the process ends so again and again."""
        self.moments = [*self.moments, now][-FAULTS:]
        return len(self.moments) == FAULTS and now - self.moments[0] <= FAULTS_WITHIN_S


@dataclass
class RestartPolicy:
    """One process's ends, and what follows from them."""

    failed_starts: int = 0

    def restart_in(self, ready_s: float | None) -> float | None:
        """Seconds until a process is to be started again that ended after being ready for `ready_s` seconds
        (None: it never was); None for never."""
        if ready_s is not None and ready_s >= SETTLED_S:
            self.failed_starts = 0
            return PAUSES.first_s
        self.failed_starts += 1
        if self.failed_starts >= CRASH_LOOP:
            return None
        return PAUSES.pause_s(self.failed_starts)
