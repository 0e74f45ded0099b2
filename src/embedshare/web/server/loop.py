"""The loop that waits for a worker's connections: a request's cost does not grow with their number.

waitress's own loop asks every connection in each turn what to wait for, and each piece of a request and each
answer needs a turn. Here the loop asks a connection after its events, and when a worker's thread has left
work for the loop. It asks once a second for its time limits.
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from waitress import wasyncore

#: Seconds within which every connection is checked: some have a time limit.
LOOK_EVERY_S = 1.0
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Sockets(dict[int, Any]):
    """The awaited sockets, by file number."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: deque[int] = deque()
        """The numbers that the loop is to ask in its next turn; any thread may add to them, and wake it."""

    def __setitem__(self, number: int, each: Any) -> None:
        super().__setitem__(number, each)
        self.changed.append(number)

    def __delitem__(self, number: int) -> None:
        super().__delitem__(number)
        self.changed.append(number)


class Loop:
    """Replaces waitress's module `wasyncore` in a server, which uses only its `loop`."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._selector = selectors.DefaultSelector()
        self._waited_for: Mapping[Any, selectors.SelectorKey] = self._selector.get_map()
        self._next_look = 0.0
        self._ended = False

    def loop(self, timeout: float, **_: object) -> None:
        """Run until `end`, or until nothing is awaited, with a turn every `timeout` seconds at least."""
        while self._sockets and not self._ended:
            self._turn(timeout)

    def end(self) -> None:
        """Make the calling turn the last one."""
        self._ended = True

    def _turn(self, timeout: float) -> None:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY_S
            for number in list(self._sockets):
                self._ask(number)
        while self._sockets.changed:
            self._ask(self._sockets.changed.popleft())
        for key, events in self._selector.select(timeout):
            if self._has(key):
                self._handle(key, events)

    def _ask(self, number: int) -> None:
        """Wait for the socket's events."""
        each = self._sockets.get(number)
        wanted = 0
        if each is not None:
            each.rests = (
                True  # set before it is asked: the thread that ends its answer reads in reverse order
            )
            wanted = _wanted(each)
            each.rests = not wanted & _READ
        key = self._waited_for.get(number)
        if key is not None and (key.data is not each or not wanted):
            self._selector.unregister(number)
            key = None
        if key is None and wanted:
            self._selector.register(number, wanted, each)
        elif key is not None and key.events != wanted:
            self._selector.modify(number, wanted, each)

    def _has(self, key: selectors.SelectorKey) -> bool:
        """Whether it still has this number."""
        return self._sockets.get(key.fd) is key.data

    def _handle(self, key: selectors.SelectorKey, events: int) -> None:
        number, each = key.fd, key.data
        if events & _READ:
            # A connection whose request is being answered is awaited too: its next request usually comes
            # after the answer, and no thread has to wake the loop in between.
            if not each.readable():
                self._ask(number)
                return
            wasyncore.read(each)
        if events & _WRITE and self._has(key):
            wasyncore.write(each)
        if self._has(key) and bool(each.writable()) != bool(key.events & _WRITE):
            self._ask(number)


class StockLoop(Loop):
    """waitress's own turns, each of which asks every connection (EMBEDDING_WEB_LOOP=waitress)."""

    def __init__(self, sockets: Sockets) -> None:
        super().__init__(sockets)
        sockets.changed = deque(maxlen=0)  # it polls for changes itself

    def _turn(self, timeout: float) -> None:
        wasyncore.loop(timeout, use_poll=True, map=self._sockets, count=1)  # select ends at 1,024 files


def _wanted(each: Any) -> int:
    wanted = _READ if each.readable() else 0
    return wanted | _WRITE if each.writable() and not each.accepting else wanted
