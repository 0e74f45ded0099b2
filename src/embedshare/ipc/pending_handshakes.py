"""Limits connections without a proved key: few at once, and none for long while others wait."""

from __future__ import annotations

import threading
import time

from embedshare.ipc.transport import Connection

#: Seconds that a connection may keep another waiting. A handshake takes a few milliseconds.
PATIENCE_S = 0.25


class PendingHandshakes:
    """Places for `most` connections; thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = threading.Condition()
        self._since: dict[Connection, float] = {}  # the oldest first

    def enter(self, connection: Connection) -> None:
        """Take a place.

        If all are taken, wait, and hang up on the oldest after its PATIENCE_S. So a silent peer cannot shut
        out holders of the key, and honest callers in a burst wait unaccepted instead of being refused.
        """
        with self._left:
            while len(self._since) >= self._most:
                oldest, since = next(iter(self._since.items()))
                left_s = since + PATIENCE_S - time.monotonic()
                if left_s <= 0:
                    oldest.hang_up()
                self._left.wait(max(left_s, 0.01))
            self._since[connection] = time.monotonic()

    def leave(self, connection: Connection) -> None:
        """Give the place back."""
        with self._left:
            del self._since[connection]
            self._left.notify_all()
