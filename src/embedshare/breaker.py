"""A circuit breaker: while a service fails, it refuses calls at once and lets one at a time probe the
service.

pybreaker holds its lock over each call, which queues all callers behind the slowest, and counts failures in a
row, not over a window. purgatory and aiobreaker serve asyncio.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from embedshare import platforms
from embedshare.backoff import Backoff

#: The sliding window moves in steps of this share of it, so that its memory does not grow with the calls.
SLICES = 10


@dataclass(frozen=True)
class Limits:
    """Thresholds and times of a breaker."""

    open: Backoff
    """Seconds that it stays open; each failed probe in a row doubles them."""

    window_s: float = 10.0
    """Seconds for which an ended call counts."""

    minimum_calls: int = 1
    """Calls in the window below which it stays closed."""

    failure_share: float = 0.5
    """Share of failed calls in the window that opens it; 0 means any failure."""


class Breaker:
    """A closed breaker admits every call, an open one none, a half-open one one at a time: the probe.

    A successful probe closes it. A failure with a Retry-After opens it at once, for at least that time.
    Thread-safe and fork-safe; it holds its lock while it counts, never over a call.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._window: deque[_Slice] = deque()
        self._open_until = 0.0
        self._opened = 0
        """How often it opened since it was last closed."""
        self._period = 0
        """Changes when it opens and closes: what an attempt of an earlier period finds out does not count."""
        self._probing = False
        self._lock = threading.Lock()
        platforms.after_fork_in_child(self._reset_after_fork)

    @property
    def is_closed(self) -> bool:
        """Whether the service answered last time."""
        return self._opened == 0

    @property
    def retry_after_s(self) -> float:
        """Seconds until it admits a probe; 0 if it admits a call, or as soon as the probe under way ends."""
        return 0.0 if self.is_closed else max(0.0, self._open_until - self._clock())

    @property
    def is_probing(self) -> bool:
        """Whether a probe is under way, which decides for all other calls."""
        return self._probing

    def admit(self) -> Attempt | None:
        """Permission for one call; None if the call would only fail."""
        now = self._clock()
        with self._lock:
            if not self.is_closed:
                if self._probing or now < self._open_until:
                    return None
                self._probing = True
            return Attempt(self, self._period)

    def _reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._probing = False  # that thread is the parent's

    def _succeeded(self, period: int) -> bool:
        now = self._clock()
        with self._lock:
            if period != self._period:
                return False
            if self.is_closed:
                self._count(now, failed=False)
                return False
            self._opened = 0
            self._change()
            return True

    def _failed(self, period: int, retry_after_s: float) -> bool:
        now = self._clock()
        with self._lock:
            was_closed = self.is_closed
            if period != self._period:
                if not was_closed:
                    self._open_until = max(self._open_until, now + retry_after_s)
                return False
            if was_closed:
                self._count(now, failed=True)
                if not retry_after_s and not self._is_failing():
                    return False
            self._opened += 1
            self._open_until = now + self._limits.open.pause_s(self._opened, retry_after_s)
            self._change()
            return was_closed

    def _abandoned(self, period: int) -> None:
        with self._lock:
            if period == self._period and not self.is_closed:
                self._change()

    def _change(self) -> None:
        self._window.clear()
        self._period += 1
        self._probing = False

    def _count(self, now: float, failed: bool) -> None:
        number = int(now / self._limits.window_s * SLICES)
        if not self._window or self._window[-1].number < number:
            self._window.append(_Slice(number))
        while self._window[0].number <= number - SLICES:
            self._window.popleft()
        self._window[-1].calls += 1
        self._window[-1].failures += failed

    def _is_failing(self) -> bool:
        calls = sum(part.calls for part in self._window)
        failures = sum(part.failures for part in self._window)
        return calls >= self._limits.minimum_calls and failures >= self._limits.failure_share * calls


class Attempt:
    """One admitted call: the `with` block that makes it.

    A block that ends without a verdict is a success; one that raises says nothing about the service.
    """

    def __init__(self, breaker: Breaker, period: int) -> None:
        self._breaker = breaker
        self._period = period
        self._is_over = False

    def succeeded(self) -> bool:
        """The service answered; True where this closed the breaker."""
        self._is_over = True
        return self._breaker._succeeded(self._period)

    def failed(self, retry_after_s: float = 0.0) -> bool:
        """The service did not answer, or asked for a pause of `retry_after_s`; True where this opened
        the breaker, which was closed."""
        self._is_over = True
        return self._breaker._failed(self._period, retry_after_s)

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._is_over:
            return
        if kind is None:
            self.succeeded()
        else:
            self._is_over = True
            self._breaker._abandoned(self._period)


@dataclass
class _Slice:
    """The calls that ended in one part of the window."""

    number: int
    calls: int = 0
    failures: int = 0
