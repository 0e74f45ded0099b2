"""Pauses between tries: each failure in a row doubles them, up to a limit.

stamina would do for `retry`, but a breaker, a supervisor and probes need the formula, which it and tenacity
keep private. It costs a worker 0.3 MB and 12 ms, and logs each try as a warning.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

#: The most doublings, which keep 2.0 ** n within a float.
_MOST_DOUBLINGS = 64


@dataclass(frozen=True)
class Backoff:
    """Pauses of `first_s` seconds that double up to `longest_s`.

    Up to `jitter` of a pause is added at random, so that callers that failed together do not retry together.
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


def told_s(seconds: float) -> float:
    """A pause in milliseconds' precision, rounded up: a caller that waits for it does not come too early."""
    return math.ceil(seconds * 1000) / 1000


def retry(
    work: Callable[[], T],
    passes: Callable[[Exception], bool],
    pauses: Backoff,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """The result of `work()`, which is retried until the moment `deadline` of `clock` while its errors are
    temporary.

    Raises its first error that is not temporary, or the last one at the deadline.
    """
    waits_s = pauses.pauses_s()
    while True:
        try:
            return work()
        except Exception as error:
            left_s = deadline - clock()
            if left_s <= 0 or not passes(error):
                raise
        sleep(min(left_s, next(waits_s)))
