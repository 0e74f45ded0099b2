"""A client's own calls: their number, outcomes, sources and times.

A call costs two turns of one lock and about a microsecond; a listener gets each call.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from embedshare import platforms
from embedshare.calls import Timings
from embedshare.telemetry.histogram import MILLISECONDS, Histogram

#: The outcome of an answered call; any other is the name of an error's class.
OK = "ok"
Source = Literal["server", "local", "nobody"]


class Ended(NamedTuple):
    """One finished call."""

    method: str
    outcome: str
    source: Source
    total_ms: float
    timings: Timings | None
    """Whether it returned vectors."""
    embeddings: int
    """The number of those vectors."""


class Calls:
    """Counts calls; thread-safe. A forked child starts from zero, with its parent's listeners."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Ended], None]] = []
        """Told of every call, by the thread that made it; what one raises is the caller's."""
        self._begin()
        platforms.after_fork_in_child(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._in_flight = 0
        self._embeddings = 0
        self._total_ms = Histogram(MILLISECONDS)
        self._since = time.monotonic()

    def begin(self) -> float:
        """A call begins: the moment, for `end`."""
        with self._lock:
            self._in_flight += 1
        return time.perf_counter()

    def end(
        self,
        began: float,
        method: str,
        outcome: str,
        source: Source,
        timings: Timings | None,
        embeddings: int = 0,
    ) -> None:
        """The call that began then has ended."""
        total_ms = (time.perf_counter() - began) * 1e3
        with self._lock:
            self._in_flight -= 1
            self._ended[method, outcome] += 1
            if timings is not None:
                self._total_ms.observe(total_ms)
                self._embeddings += embeddings
        for listener in self.listeners:
            listener(Ended(method, outcome, source, total_ms, timings, embeddings))

    def stats(self) -> dict[str, Any]:
        """Plain numbers; `histograms` are of the calls that returned vectors."""
        with self._lock:
            ended = dict(self._ended)
            in_flight, embeddings, total_ms = self._in_flight, self._embeddings, self._total_ms.snapshot()
        calls = sum(ended.values())
        answered = sum(count for (_, outcome), count in ended.items() if outcome == OK)
        return {
            "calls": calls,
            "failures": calls - answered,
            "in_flight": in_flight,
            "embeddings": embeddings,
            "uptime_s": round(time.monotonic() - self._since, 3),
            "histograms": {"total_ms": total_ms},
        }
