"""The API keys that are valid now, known to every worker within two seconds.

A key holds 256 random bits, so that nobody finds it by trying and a fast digest keeps it as well as a slow
one would: SHA-256. It is found by its digest, and how long that takes tells nothing of any key.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from loguru import logger

from embedshare.errors import DatabaseUnavailable

#: The keys are read anew so often, in seconds; one that was made or revoked is seen by then.
REFRESH_S = 1.0
#: Keys that were seen in use are reported so often, in seconds.
REPORT_S = 30.0
#: The first request waits so long for the first reading, in seconds.
PATIENCE_S = 2.0
#: No key of ours is longer; what is need not be digested.
MOST_CHARS = 256


@dataclass(frozen=True)
class Caller:
    """Whom a key belongs to, and what it is for.

    `id` is None for keys that are in no database, whose requests are not counted either. `expires_at` in
    seconds since 1970.
    """

    name: str
    scopes: frozenset[str]
    id: int | None = None
    expires_at: float | None = None


class KeyRing:
    """Callers by their keys' digests.

    `read` gives all valid keys of the database and raises DatabaseUnavailable; `fixed` those that need none.
    `seen` is told the ids of keys that were used lately. Both are called in a thread of this object's own.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, Caller]],
        fixed: Callable[[], Mapping[str, Caller]] = dict,
        seen: Callable[[Iterable[int]], None] = lambda _: None,
    ) -> None:
        self._read, self._fixed, self._report = read, fixed, seen
        self._known: Mapping[str, Caller] = {}
        self._by_hand: Mapping[str, Caller] = {}
        self._current = False
        self._asked_once = threading.Event()
        self._starting = threading.Lock()
        self._pid: int | None = None
        self._used: set[int] = set()

    def find(self, key: str) -> Caller | None:
        """Whose key this is; None where it is nobody's, was revoked or has expired.

        While the database is away the keys that were known go on being valid. Raises DatabaseUnavailable for
        others then, since they may be valid too.
        """
        self._start()
        if len(key) > MOST_CHARS:
            return None
        hashed = digest(key)
        caller = self._by_hand.get(hashed) or self._known.get(hashed)
        if caller is None:
            if not self._current:
                raise DatabaseUnavailable(
                    "the database with the API keys does not answer, and this key is not known from before"
                )
            return None
        if caller.expires_at is not None and time.time() >= caller.expires_at:
            return None
        if caller.id is not None:
            self._used.add(caller.id)
        return caller

    def _start(self) -> None:
        """Begin to read, in this process: a forked child has no thread that would."""
        if self._pid != os.getpid():
            with self._starting:
                if self._pid != os.getpid():
                    self._asked_once = threading.Event()
                    threading.Thread(target=self._follow, name="embedshare-keys", daemon=True).start()
                    self._pid = os.getpid()
        self._asked_once.wait(PATIENCE_S)

    def _follow(self) -> None:
        reported = time.monotonic()
        while True:
            self._refresh()
            self._asked_once.set()
            if time.monotonic() - reported >= REPORT_S and self._current:
                reported = time.monotonic()
                self._tell_used()
            time.sleep(REFRESH_S)

    def _refresh(self) -> None:
        was_current = self._current
        self._by_hand = self._fixed()
        try:
            self._known, self._current = self._read(), True
        except DatabaseUnavailable as error:
            self._current = False
            if was_current or not self._asked_once.is_set():
                logger.warning("{}; API keys that were known go on being valid", error.message)
        else:
            if not was_current and self._asked_once.is_set():
                logger.info("the database with the API keys answers again")

    def _tell_used(self) -> None:
        used, self._used = self._used, set()
        try:
            self._report(used)
        except DatabaseUnavailable:
            self._used |= used


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf8", "surrogatepass")).hexdigest()
