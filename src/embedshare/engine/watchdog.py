"""Whether batches go through the runtime, and what follows where they do not.

A batch that fails says little, since one text may be to blame. So a runtime that failed its last batch is
asked for an embedding of its own, once a second, until it gives one; one that gives none again and again, or
holds a batch without end, is given up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from embedshare.calls import WELL, CallContext, EmbedRequest
from embedshare.errors import DeadlineExceeded, EmbedshareError, Overloaded

#: So many embeddings in a row that fail, one a second, and the runtime is given up.
PROBES = 5
PROBE_EVERY_S = 1.0
_PROBE_TIMEOUT_S = 5.0


class RuntimeHealth:
    """When batches entered the runtime, and how the last one left it.

    Safe to use from any number of threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._inside: dict[int, float] = {}
        self.failing = False

    def enter(self) -> None:
        """This thread hands a batch to the runtime."""
        self._inside[threading.get_ident()] = self._clock()

    def leave(self, succeeded: bool) -> None:
        """The runtime is done with this thread's batch."""
        del self._inside[threading.get_ident()]
        self.failing = not succeeded

    @property
    def longest_inside_s(self) -> float:
        """Seconds that the batch has been in the runtime that entered it first; 0 where none is."""
        return self._clock() - min(list(self._inside.values()), default=self._clock())


class WatchedEngine(Protocol):
    """What is watched: an engine."""

    @property
    def runtime_health(self) -> RuntimeHealth: ...
    def embed(self, request: EmbedRequest, context: CallContext) -> object: ...


def watch(
    engine: WatchedEngine, stop: threading.Event, stuck_s: float, give_up: Callable[[str], None]
) -> None:
    """Until `stop`: call `give_up` with the reason where the runtime holds a batch for over `stuck_s`
    seconds, or fails whatever it is asked."""
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
        engine.embed(WELL, CallContext(time.monotonic() + _PROBE_TIMEOUT_S))
    except (DeadlineExceeded, Overloaded):
        pass  # it has work, and what becomes of that is seen
    except EmbedshareError as error:
        return error
    return None
