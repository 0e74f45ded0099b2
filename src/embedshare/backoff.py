"""Pauses between tries: each failure in a row doubles them, up to a limit. Pure: no clock, no sleep.

stamina and tenacity wrap a callable and sleep between its tries. Here a supervisor's events, a breaker and
probes wait, each in its own way: they need the formula alone, which both libraries keep private.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

#: No pause is doubled more often, which keeps 2.0 ** n within a float.
_MOST_DOUBLINGS = 64


@dataclass(frozen=True)
class Backoff:
    """Pauses of `first_s` seconds that double up to `longest_s`.

    Up to `jitter` of a pause is added at random: callers that failed together must not return together.
    """

    first_s: float
    longest_s: float
    jitter: float = 0.0

    def pause_s(self, failures: int, at_least_s: float = 0.0) -> float:
        """Seconds to wait after `failures` failures in a row, 1 or more.

        The pause is never shorter than `at_least_s`, such as a Retry-After.
        """
        doubled_s = self.first_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)
        pause_s = max(at_least_s, min(self.longest_s, doubled_s))
        return pause_s * (1.0 + self.jitter * random.random())

    def pauses_s(self) -> Iterator[float]:
        """The pauses after the first failure in a row, the second, and so on without end."""
        return map(self.pause_s, itertools.count(1))
