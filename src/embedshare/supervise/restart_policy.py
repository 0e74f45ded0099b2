"""Decides when an ended process is restarted, and when to give up. Pure: no clock, no processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from embedshare.backoff import Backoff

#: Pauses before a restart, in seconds: each failed start in a row doubles them.
PAUSES = Backoff(0.2, 30.0)
#: Seconds of readiness after which a start counts as successful, whatever ended the process.
SETTLED_S = 1.0
#: Failed starts in a row that make a crash loop, however long each took.
CRASH_LOOP = 6
#: This many faults within this many seconds are reported as the model's.
FAULTS = 3
FAULTS_WITHIN_S = 600.0


@dataclass
class Faults:
    """One process's ends by a fault of its own, such as a division by zero in a library."""

    moments: list[float] = field(default_factory=list)

    def note(self, now: float) -> bool:
        """Count one more; whether the process ends so repeatedly."""
        self.moments = [*self.moments, now][-FAULTS:]
        return len(self.moments) == FAULTS and now - self.moments[0] <= FAULTS_WITHIN_S


@dataclass
class RestartPolicy:
    """One process's ends and their consequences."""

    failed_starts: int = 0

    def restart_in(self, ready_s: float | None) -> float | None:
        """Seconds until the restart of a process that ended after being ready for `ready_s` seconds (None: it
        never was); None for no restart."""
        if ready_s is not None and ready_s >= SETTLED_S:
            self.failed_starts = 0
            return PAUSES.first_s
        self.failed_starts += 1
        if self.failed_starts >= CRASH_LOOP:
            return None
        return PAUSES.pause_s(self.failed_starts)
