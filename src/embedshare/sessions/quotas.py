"""The quotas of sessions: what a session may hold, and the tokens that an owner's sessions may read a day."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from embedshare.errors import DatabaseUnavailable, QuotaExceeded
from embedshare.sessions.records import Usage
from embedshare.settings.sessions import SessionSettings

DAY_S = 86_400


def check(usage: Usage, more: Usage, limits: SessionSettings) -> None:
    """Raise QuotaExceeded if a session of `usage` cannot take `more`."""
    for quota, held, added, most, setting in (
        ("documents", usage.documents, more.documents, limits.max_documents, "DOCUMENTS"),
        ("chunks", usage.chunks, more.chunks, limits.max_chunks, "CHUNKS"),
        ("bytes", usage.size, more.size, limits.max_bytes, "BYTES"),
    ):
        if held + added > most:
            raise QuotaExceeded(
                f"the session has {held:,} {quota}, and {added:,} more would exceed {most:,} "
                f"(EMBEDDING_SESSION_MAX_{setting}); delete documents first",
                quota=quota,
                limit=most,
            )


def check_sessions(count: int, limits: SessionSettings) -> None:
    """Raise QuotaExceeded if an owner of `count` sessions cannot have one more."""
    if count >= limits.max_sessions:
        raise QuotaExceeded(
            f"this caller has {count:,} sessions; EMBEDDING_MAX_SESSIONS allows {limits.max_sessions:,}: "
            "destroy some first",
            quota="sessions",
            limit=limits.max_sessions,
        )


class DayTokens:
    """Tokens that each owner's sessions read today, in UTC; thread-safe.

    `read(owner, day)` and `write(owner, day, tokens)` keep them; `most`: tokens a day, 0 for any number.
    """

    def __init__(
        self,
        most: int,
        read: Callable[[str, int], int],
        write: Callable[[str, int, int], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._most, self._read, self._write, self._clock = most, read, write, clock
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[int, int]] = {}
        self._unwritten: set[str] = set()

    def check(self, owner: str) -> None:
        """Raise QuotaExceeded if the owner's sessions have read their tokens of today.

        Raises DatabaseUnavailable too.
        """
        if self._most and self._of(owner) >= self._most:
            left_s = DAY_S - self._clock() % DAY_S
            raise QuotaExceeded(
                f"this caller's sessions have read {self._of(owner):,} tokens today; "
                f"EMBEDDING_SESSION_TOKENS_A_DAY allows {self._most:,}: retry tomorrow (UTC)",
                quota="tokens",
                limit=self._most,
                retry_after_s=round(left_s),
            )

    def add(self, owner: str, tokens: int) -> None:
        """Count tokens that were read. Raises DatabaseUnavailable."""
        if self._most:
            self._of(owner)
            with self._lock:
                day, before = self._counts[owner]
                self._counts[owner] = (day, before + tokens)
                self._unwritten.add(owner)

    def write(self) -> None:
        """Store the counts that changed. Raises DatabaseUnavailable."""
        while self._unwritten:
            with self._lock:
                owner = self._unwritten.pop()
                day, tokens = self._counts[owner]
            try:
                self._write(owner, day, tokens)
            except DatabaseUnavailable:
                self._unwritten.add(owner)
                raise

    @property
    def _today(self) -> int:
        return int(self._clock() // DAY_S)

    def _of(self, owner: str) -> int:
        day, tokens = self._counts.get(owner, (-1, 0))
        if day != self._today:
            tokens = self._read(owner, self._today)
            with self._lock:
                if self._counts.get(owner, (-1, 0))[0] != self._today:
                    self._counts[owner] = (self._today, tokens)
        return tokens
