"""Watches whether batches pass through the runtime, and gives a failing runtime up.

A failed batch says little, since one text may be to blame. So a runtime that failed its last batch gets a
test embedding once a second until one succeeds. A runtime that fails them repeatedly, or holds a batch for
too long, is given up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from embedshare.calls import CallContext
from embedshare.errors import DeadlineExceeded, EmbedshareError, Overloaded

#: Failed test embeddings in a row, one a second, after which the runtime is given up.
PROBES = 5
PROBE_EVERY_S = 1.0
_PROBE_TIMEOUT_S = 5.0


class RuntimeHealth:
    """The times at which batches entered the runtime, and the outcome of the last one; thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._inside: dict[int, float] = {}
        self.failing = False

    def enter(self) -> None:
        """This thread passes a batch to the runtime."""
        self._inside[threading.get_ident()] = self._clock()

    def leave(self, succeeded: bool) -> None:
        """The runtime has finished this thread's batch."""
        del self._inside[threading.get_ident()]
        self.failing = not succeeded

    @property
    def longest_inside_s(self) -> float:
        """Seconds that the oldest batch has been in the runtime; 0 without one."""
        return self._clock() - min(list(self._inside.values()), default=self._clock())


class WatchedEngine(Protocol):
    """The watched engine."""

    @property
    def runtime_health(self) -> RuntimeHealth: ...
    def probe(self, context: CallContext) -> None: ...


def watch(
    engine: WatchedEngine, stop: threading.Event, stuck_s: float, give_up: Callable[[str], None]
) -> None:
    """Until `stop`: call `give_up` with the reason if the runtime holds a batch for over `stuck_s` seconds,
    or fails every test embedding."""
    failures = 0
    while not stop.wait(PROBE_EVERY_S):
        inside_s = engine.runtime_health.longest_inside_s
        if inside_s > stuck_s:
            give_up(f"a batch has been in the runtime for {inside_s:.0f} s; EMBEDDING_STUCK_S is {stuck_s:g}")
            return
        error = _probe(engine) if engine.runtime_health.failing else None
        failures = failures + 1 if error is not None else 0
        if failures >= PROBES:
            give_up(f"the runtime failed {failures} embeddings in a row: {error}")
            return


def _probe(engine: WatchedEngine) -> EmbedshareError | None:
    try:
        engine.probe(CallContext(time.monotonic() + _PROBE_TIMEOUT_S))
    except (DeadlineExceeded, Overloaded):
        pass  # it has work, whose outcome is seen
    except EmbedshareError as error:
        return error
    return None
