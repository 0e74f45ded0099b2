"""Connections that have not yet proved to hold the key: few at once, and while others wait, none for long."""

from __future__ import annotations

import threading
import time

from embedshare.ipc.transport import Connection

#: As long as a connection may keep another from coming in. A handshake takes a few milliseconds.
PATIENCE_S = 0.25


class PendingHandshakes:
    """Places for `most` connections.

    Safe to use from any number of threads.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = threading.Condition()
        self._since: dict[Connection, float] = {}  # the oldest first

    def enter(self, connection: Connection) -> None:
        """Take a place.

        Where there is none, wait for it, and hang up on the oldest once it has had its PATIENCE_S: who says
        nothing cannot shut out those who hold the key, and honest callers that come all at once are not
        turned away but wait unaccepted.
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
