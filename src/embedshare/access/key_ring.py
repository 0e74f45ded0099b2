"""The API keys that are valid now, known to every worker within two seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Set

from loguru import logger

from embedshare import platforms
from embedshare.access.keys import Principal, digest
from embedshare.errors import DatabaseUnavailable

#: Seconds between two readings of the keys: a new or revoked key takes effect by then.
REFRESH_S = 1.0
#: Seconds between two reports of the used keys.
TELL_S = 30.0
#: Seconds that the first request waits for the first reading.
PATIENCE_S = 3.0
#: The longest key; a longer text is not digested.
MOST_CHARS = 256


class KeyRing:
    """Callers by their keys' digests, which a thread reads again at intervals.

    `read` gives the keys of the database, `fixed` those that need none, and `used` is told the ids of
    recently used keys. `read` and `used` may raise DatabaseUnavailable. While they do, the known keys stay
    valid.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, Principal]],
        fixed: Callable[[], Mapping[str, Principal]] = dict,
        used: Callable[[Set[int]], None] = lambda ids: None,
    ) -> None:
        self._read, self._fixed, self._tell = read, fixed, used
        self._stored: Mapping[str, Principal] = {}
        self._others: Mapping[str, Principal] = {}
        self._current = False
        self._used: set[int] = set()
        self._begin()
        platforms.after_fork_in_child(self._begin)

    def _begin(self) -> None:
        self._first = threading.Event()
        self._starting = threading.Lock()
        self._is_started = False

    def start(self) -> None:
        """Begin to read, in this process; a forked child lacks the thread and starts its own."""
        if self._is_started:
            return
        with self._starting:
            if not self._is_started:
                threading.Thread(target=self._follow, name="embedshare-keys", daemon=True).start()
                self._is_started = True

    def find(self, key: str | None) -> Principal | None:
        """The key's owner; None without a key, or if it is unknown, revoked or expired.

        Raises DatabaseUnavailable for an unknown key while the database is down, since it may be valid.
        """
        self.start()
        if key is None or len(key) > MOST_CHARS:
            return None
        self._first.wait(PATIENCE_S)
        hashed = digest(key)
        caller = self._others.get(hashed) or self._stored.get(hashed)
        if caller is None and not self._current:
            raise DatabaseUnavailable(
                "the database with the API keys does not answer, and this worker does not know this "
                "key; retry later"
            )
        if caller is None or (caller.expires_at is not None and time.time() >= caller.expires_at):
            return None
        if caller.id is not None:
            self._used.add(caller.id)
        return caller

    def _follow(self) -> None:
        told = time.monotonic()
        while True:
            self._refresh()
            if self._used and time.monotonic() - told >= TELL_S:
                told = time.monotonic()
                self._tell_used()
            time.sleep(REFRESH_S)

    def _refresh(self) -> None:
        first, was_current = not self._first.is_set(), self._current
        self._others = self._fixed()
        try:
            self._stored, self._current = self._read(), True
        except DatabaseUnavailable as error:
            self._current = False
            if first or was_current:
                logger.warning("Keeping the API keys that were read last ({})", error.message)
        else:
            if not first and not was_current:
                logger.info("Read the API keys again (the database answers)")
            if first and not self._stored and not any("admin" in one.scopes for one in self._others.values()):
                logger.warning(
                    "Refusing every caller (no API key exists); create one: `service_manager.py keys "
                    "create --name NAME --scopes embed`"
                )
        self._first.set()

    def _tell_used(self) -> None:
        used, self._used = self._used, set()
        try:
            self._tell(used)
        except DatabaseUnavailable:
            self._used |= used
