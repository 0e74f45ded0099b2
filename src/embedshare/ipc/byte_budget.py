"""Limits the bytes of calls that the server holds at once, from a message's announcement to its answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

#: Smaller messages need no room: all connections together cannot send many bytes of them.
SMALL_BYTES = 64 * 1024
_UNASKED = nullcontext()


class ByteBudget:
    """Room for `limit` bytes of large messages, or for a single one of any size; thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._freed = threading.Condition()
        self.held = 0

    def of(self, size: int) -> AbstractContextManager[None]:
        """A context that holds room for `size` bytes.

        Until there is room the message stays unread: the network slows its sender, which ends the call at its
        own deadline.
        """
        return _UNASKED if size <= SMALL_BYTES else self._hold(size)

    @contextmanager
    def _hold(self, size: int) -> Iterator[None]:
        with self._freed:
            self._freed.wait_for(lambda: not self.held or self.held + size <= self._limit)
            self.held += size
        try:
            yield
        finally:
            with self._freed:
                self.held -= size
                self._freed.notify_all()
