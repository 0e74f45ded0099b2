"""How many callers a worker has that come again and again without a pause.

Pure: no threads, no clock.
"""

from __future__ import annotations

from collections.abc import Hashable

#: Who comes back within so many seconds of its answer does so without a pause.
SOON_S = 0.05


class SteadyCallers:
    """Callers, each with one request at a time. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._inside = 0
        self._left: dict[Hashable, float] = {}
        """Who had an answer lately, and when; the one longest ago is the first."""
        self._regulars: set[Hashable] = set()
        """Those that came back soon when they last came."""

    def arrived(self, caller: Hashable, now: float) -> None:
        """A caller's request has come."""
        self._forget(now)
        self._inside += 1
        if self._left.pop(caller, None) is not None:
            self._regulars.add(caller)

    def left(self, caller: Hashable, now: float) -> None:
        """It has its answer."""
        self._inside -= 1
        self._left.pop(caller, None)
        self._left[caller] = now

    def usual(self, now: float) -> int:
        """How many are here, or are likely to come back soon."""
        self._forget(now)
        return self._inside + len(self._regulars & self._left.keys())

    def _forget(self, now: float) -> None:
        """Those who left and did not come back soon."""
        while self._left:
            caller, when = next(iter(self._left.items()))
            if now - when <= SOON_S:
                return
            del self._left[caller]
            self._regulars.discard(caller)
