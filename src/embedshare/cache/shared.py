"""A level of the cache outside this process: read within a deadline, written in a thread of its own."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import numpy as np
from loguru import logger

from embedshare.backoff import Backoff
from embedshare.breaker import Breaker, Limits
from embedshare.cache import entry
from embedshare.cache.entry import Entry, Stored
from embedshare.errors import ServerUnavailable

#: The most bytes of vectors that wait to be written; further ones are not.
WAITING_BYTES = 32 << 20
#: The most vectors of one write; those that wait are written together.
BATCH = 512
#: Seconds between two rounds of a store's upkeep, and until the next one if it could not be opened.
UPKEEP_S, REOPEN_S = 60.0, 5.0
#: Seconds in which vectors must be dropped, behind the writes that wait.
DROP_S = 25.0
#: Pauses after failures: one call a second tries again, then one in two, up to one in 30.
LIMITS = Limits(Backoff(1.0, 30.0), window_s=10.0, minimum_calls=1, failure_share=0.2)
#: The share by which lifetimes differ, so that entries of one moment do not expire together.
_JITTER = 0.1


class Busy(Exception):
    """A store had no time for a read, which says nothing about its health."""


class Store(Protocol):
    """What holds the entries. Every method but `read` is called by the level's thread alone."""

    name: str
    """Its key in the stats and its label in metrics."""
    title: str
    """Its name in log lines and errors."""

    @property
    def is_ready(self) -> bool:
        """Whether it may be read and written; `maintain` makes it so."""

    def read(self, space: bytes, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The value of each key, within the store's deadline. Thread-safe. Raises Busy and the errors of its
        driver."""

    def write(self, entries: Sequence[Entry]) -> None: ...

    def remove(self, space: bytes, keys: Sequence[bytes]) -> int:
        """Drop keys; returns the number of those that were there."""

    def clear(self, space: bytes | None) -> int:
        """Drop the entries of one model, or all; returns their number."""

    def maintain(self) -> None:
        """Make it ready, and drop what has expired or is beyond its limit."""

    def stats(self) -> dict[str, int]: ...


class SharedLevel:
    """Vectors by key in a store that several servers may share; thread-safe.

    Errors of the store cost a hit, and no call. `lifetime_s`: as of MemoryCache.
    """

    def __init__(self, store: Store, lifetime_s: float) -> None:
        self._store = store
        self._lifetime_s = lifetime_s
        self._breaker = Breaker(LIMITS)
        self._changed = threading.Condition()
        self._waiting: deque[_Write | _Drop] = deque()
        self._waiting_bytes = 0
        self._counts = dict.fromkeys(("hits", "written", "dropped", "failures", "invalid"), 0)
        self._upkeep_at = time.monotonic()
        threading.Thread(target=self._work, name=f"cache-{store.name}", daemon=True).start()

    @property
    def name(self) -> str:
        """See Store."""
        return self._store.name

    def get(self, space: bytes, keys: Sequence[bytes], dimension: int) -> Stored | None:
        """Those of the keys that are there with vectors of at least `dimension` values; None if none is."""
        attempt = self._breaker.admit() if self._store.is_ready else None
        if attempt is None:
            return None
        with suppress(Busy), attempt:
            try:
                values = self._store.read(space, keys)
            except Busy:
                raise
            except Exception as error:  # no failure of a store fails a call
                self._failed(attempt.failed(), error)
                return None
            if attempt.succeeded():
                logger.info("Reading cached vectors from {} again", self._store.title)
            return self._unpacked(keys, values, dimension)
        return None

    def put_later(
        self,
        space: bytes,
        keys: Sequence[bytes],
        rows: np.ndarray,
        token_counts: Sequence[int],
        left_s: Sequence[float] | None = None,
    ) -> None:
        """Write these vectors in another thread, unless too many wait already. `left_s`: as of
        MemoryCache.put."""
        now = time.time()
        ends = [self._end(now) for _ in keys] if left_s is None else [_end(now, left) for left in left_s]
        with self._changed:
            if not self._breaker.is_closed or self._waiting_bytes + rows.nbytes > WAITING_BYTES:
                self._counts["dropped"] += len(keys)
                return
            self._waiting_bytes += rows.nbytes
            self._waiting.append(_Write(space, keys, rows, token_counts, ends))
            self._changed.notify()

    def drop_later(self, space: bytes | None, keys: Sequence[bytes] | None) -> Future[int]:
        """Drop these keys' entries, or all of one model, or all, after every write that waits now.

        The result is the number of entries that were there, or a ServerUnavailable.
        """
        dropped: Future[int] = Future()

        def work() -> int:
            if space is not None and keys is not None:
                return self._store.remove(space, keys)
            return self._store.clear(space)

        with self._changed:
            self._waiting.append(_Drop(work, dropped))
            self._changed.notify()
        return dropped

    def dropped(self, pending: Future[int]) -> int:
        """The result of `drop_later`. Raises ServerUnavailable, also if it takes longer than DROP_S."""
        try:
            return pending.result(DROP_S)
        except FutureTimeout:
            message = f"{self._store.title} did not drop cached vectors within {DROP_S:g} s; try again later"
            raise ServerUnavailable(message) from None

    def stats(self) -> dict[str, Any]:
        """Counts since the start, whether the store answered last time, and what it tells of itself."""
        with self._changed:
            connected = self._store.is_ready and self._breaker.is_closed
            return {**self._counts, "connected": connected, **self._store.stats()}

    def _unpacked(
        self, keys: Sequence[bytes], values: Sequence[bytes | None], dimension: int
    ) -> Stored | None:
        found, invalid = entry.unpack(keys, values, dimension, time.time())
        self._count("invalid", invalid)
        self._count("hits", 0 if found is None else len(found.positions))
        return found

    def _end(self, now: float) -> float:
        """The time at which an entry ends that is new now."""
        return now + self._lifetime_s * random.uniform(1 - _JITTER, 1 + _JITTER) if self._lifetime_s else 0.0

    def _work(self) -> None:
        while True:
            if time.monotonic() >= self._upkeep_at:
                self._maintain()
            job, *more = self._next()
            if isinstance(job, _Drop):
                self._drop(job)
            elif job is not None:
                self._write([job, *more])

    def _next(self) -> list[Any]:
        """A drop, or the next writes, which may go together; [None] if there is nothing before the upkeep."""
        with self._changed:
            limit = max(0.0, self._upkeep_at - time.monotonic())
            if not self._changed.wait_for(lambda: bool(self._waiting), limit):
                return [None]
            jobs = [self._waiting.popleft()]
            count = len(jobs[0].keys) if isinstance(jobs[0], _Write) else BATCH
            while self._waiting and count < BATCH:
                following = self._waiting[0]
                if not isinstance(following, _Write):
                    break
                jobs.append(following)
                self._waiting.popleft()
                count += len(following.keys)
            return jobs

    def _maintain(self) -> None:
        was_ready = self._store.is_ready
        try:
            self._store.maintain()
        except Exception as error:  # the thread goes on, and the store may be back later
            self._count("failures", 1)
            logger.debug("Could not maintain the cached vectors in {}: {}", self._store.title, error)
        if self._store.is_ready and not was_ready:
            logger.info("Sharing cached vectors through {}", self._store.title)
        self._upkeep_at = time.monotonic() + (UPKEEP_S if self._store.is_ready else REOPEN_S)

    def _write(self, writes: list[_Write]) -> None:
        count = sum(len(write.keys) for write in writes)
        attempt = self._breaker.admit() if self._store.is_ready else None
        if attempt is None:
            self._count("dropped", count)
        else:
            with attempt:
                try:
                    self._store.write([one for write in writes for one in write.entries()])
                    self._count("written", count)
                except Exception as error:  # the thread goes on
                    self._failed(attempt.failed(), error)
        with self._changed:
            self._waiting_bytes -= sum(write.rows.nbytes for write in writes)

    def _drop(self, drop: _Drop) -> None:
        try:
            drop.result.set_result(drop.work())
        except Exception as error:  # the thread goes on, and who asked for it is told
            reason = f"{self._store.title} did not drop cached vectors: {error}"
            drop.result.set_exception(ServerUnavailable(reason))

    def _failed(self, opened: bool, error: Exception) -> None:
        self._count("failures", 1)
        if opened:
            title = self._store.title
            logger.warning("Computing what {} may have cached ({} does not answer: {})", title, title, error)

    def _count(self, name: str, count: int) -> None:
        if count:
            with self._changed:
                self._counts[name] += count


class _Write(NamedTuple):
    space: bytes
    keys: Sequence[bytes]
    rows: np.ndarray
    token_counts: Sequence[int]
    ends: list[float]

    def entries(self) -> list[Entry]:
        """The entries to write."""
        made = zip(self.keys, self.rows, self.token_counts, self.ends, strict=True)
        return [
            Entry(self.space, key, entry.pack(key, row, tokens, until), until)
            for key, row, tokens, until in made
        ]


class _Drop(NamedTuple):
    work: Callable[[], int]
    result: Future[int]


def _end(now: float, left_s: float) -> float:
    return 0.0 if left_s == float("inf") else now + left_s
