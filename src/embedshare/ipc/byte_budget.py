"""How many bytes of calls the server holds at once, from when a message is announced until it is answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

#: Smaller messages are let in unasked: all connections together cannot send many bytes of them.
SMALL_BYTES = 64 * 1024
_UNASKED = nullcontext()


class ByteBudget:
    """Room for `limit` bytes of large messages, or for one of any size where no other is held.

    Safe to use from any number of threads.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._freed = threading.Condition()
        self.held = 0

    def of(self, size: int) -> AbstractContextManager[None]:
        """Within, room for `size` bytes is held.

        Until there is some the message stays unread, so that its sender is slowed by the network and ends the
        call at its own deadline.
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
