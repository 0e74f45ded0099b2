"""Where a worker listens that has a supervisor, which gives each of its workers a port of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from embedshare.errors import PortUnavailable

#: A port that another worker is about to leave is waited for so long, and tried this often, in seconds.
PATIENCE_S, TRY_EVERY_S = 1.5, 0.02


class Listening(Protocol):
    """What listens; `listener.Listening` is one."""

    @property
    def address(self) -> tuple[str, int]: ...
    def prepare(self, host: str, port: int) -> Callable[[bool], None]: ...
    def check_reach(self, host: str) -> None: ...


class Placed:
    """Listens where the supervisor says that this worker does, under the settings of the moment.

    `ask(host, port, take)` asks it: where that is with these values stored (None: nothing is), and with
    `take` that all workers listen there from now on; `{"host", "port", "pinned"}`. It raises PortUnavailable
    where one of them cannot.
    """

    def __init__(
        self, listening: Listening, ask: Callable[[str | None, int | None, bool], dict[str, Any]]
    ) -> None:
        self._listening = listening
        self._ask = ask
        self.pinned = False
        """Whether the supervisor keeps its own port, whatever is stored."""

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self._listening.address

    def prepare(self, host: str | None, port: int | None) -> Callable[[bool], None]:
        """Find out whether all workers can listen there; they do when `follow` is called, each by itself.

        Raises PortUnavailable, InvalidSetting.
        """
        self._told(host, port, take=False)
        return lambda moves: None

    def follow(self, host: str | None, port: int | None) -> None:
        """Listen there, and no more at the address before. Raises PortUnavailable, InvalidSetting.

        Where the old ports and the new ones overlap, each worker waits for the one whose port it gets.
        """
        address = self._told(host, port, take=True)
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._listening.prepare(*address)(True)
                return
            except PortUnavailable:
                if time.monotonic() >= until:
                    raise
                time.sleep(TRY_EVERY_S)

    def _told(self, host: str | None, port: int | None, *, take: bool) -> tuple[str, int]:
        if host is not None:
            self._listening.check_reach(host)
        told = self._ask(host, port, take)
        self.pinned = told["pinned"]
        return told["host"], told["port"]
