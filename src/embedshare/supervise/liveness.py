"""Tells whether a running process still answers. Pure: no clock, no processes.

Only time in which the asking process itself ran counts, so neither a suspended machine nor a stopped
supervisor makes its services look hung.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Seconds between an answer and the next check, and for the answer.
ASK_EVERY_S, ANSWER_S = 1.0, 2.0
#: Excess seconds of an answer that show that the asking process was stopped or starved.
SLACK_S = 1.0
#: Seconds of silence after which a process is hung. Two checks in a row have failed by then.
HUNG_S = 5.0


@dataclass
class Liveness:
    """One process's recent answers; `stuck_s` seconds of silence are too many."""

    stuck_s: float
    silent_s: float = 0.0

    def note(self, answered: bool, waited_s: float) -> None:
        """The process was asked, and answered or not, `waited_s` seconds later."""
        if answered:
            self.silent_s = 0.0
        elif waited_s <= ANSWER_S + SLACK_S:
            self.silent_s += ASK_EVERY_S + waited_s

    @property
    def is_hung(self) -> bool:
        """Whether it has not answered for a few seconds."""
        return self.silent_s >= HUNG_S

    @property
    def is_stuck(self) -> bool:
        """Whether it has been silent for so long that it must be killed."""
        return self.silent_s >= max(self.stuck_s, HUNG_S)
