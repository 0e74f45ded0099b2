"""Tells a slow server from a hung one: once an answer is late, a second connection is tried.

Answers to this process's other calls show that the server is alive. Without any, one thread probes it on a
connection of its own, and the result holds for all waiting threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from embedshare.errors import DeadlineExceeded, ServerHung, ServerUnavailable
from embedshare.ipc import transport

#: A hung server does not answer the probe within this many seconds. A live one needs a millisecond, or up to
#: two seconds on a machine with hundreds of busy processes.
PROBE_S = 4.0


class HangDetector:
    """Whether the server is alive; `probe(deadline)` queries it on a new connection. Thread-safe.

    `probe` raises ServerUnavailable or DeadlineExceeded without an answer.
    """

    def __init__(self, probe: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._clock = clock
        self._probing = threading.Lock()
        self._last_answer = self._last_failure = float("-inf")

    def answered(self, now: float) -> None:
        """The server has answered a call."""
        self._last_answer = now

    def check(self, deadline: float) -> None:
        """Return if the server is alive.

        Raises ServerHung if it hangs, and DeadlineExceeded if that is unknown at `deadline`.
        """
        asked = self._clock()
        if asked - self._last_answer < transport.PATIENCE_S:
            return
        if not self._probing.acquire(timeout=max(0.0, deadline - asked)):
            raise DeadlineExceeded("no answer in time")
        try:
            if self._last_answer >= asked:
                return
            if self._last_failure < asked:
                self._ask(deadline)
            if self._last_failure >= asked:
                raise ServerHung("the model server hangs: it answers neither this call nor a new connection")
        finally:
            self._probing.release()

    def _ask(self, deadline: float) -> None:
        limit = self._clock() + PROBE_S
        try:
            self._probe(min(limit, deadline))
        except (ServerUnavailable, DeadlineExceeded):
            if self._clock() >= deadline:  # it was given less time than it may take
                raise DeadlineExceeded("no answer in time") from None
            self._last_failure = self._clock()
        else:
            self._last_answer = self._clock()
