"""Cached vectors in a Redis, for several servers of one model and for the next start."""

from __future__ import annotations

import queue
import random
import re
import struct
import threading
import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import numpy as np
from loguru import logger

from embedshare.backoff import Backoff
from embedshare.breaker import Breaker, Limits
from embedshare.errors import MissingDependency, ServerUnavailable

#: Seconds that a call waits for Redis, once for several calls at a time; then it computes.
PATIENCE_S = 0.008
#: Seconds that a write may take, in a thread of its own.
WRITE_S = 1.0
#: The most bytes of vectors that wait to be written; further ones are not.
WAITING_BYTES = 32 << 20
#: Pauses after failures: one call a second tries again, then one in two, up to one in 30.
LIMITS = Limits(Backoff(1.0, 30.0), window_s=10.0, minimum_calls=1, failure_share=0.2)
_PREFIX = b"embedshare:vector:1:"
#: Checksum, tokens, and the time at which the entry ends, in Unix seconds; 0 is never.
_HEADER = struct.Struct("<8sId")
_JITTER = 0.1


class Stored(NamedTuple):
    """Vectors that were found; `positions` are those of their keys among the requested ones."""

    positions: list[int]
    rows: np.ndarray
    """Float32 (len(positions), dimension)"""

    token_counts: list[int]
    left_s: list[float]
    """Seconds that each has left."""


class RedisCache:
    """Vectors by key in the Redis at `url`; thread-safe. Errors of Redis cost a hit, and no call.

    `lifetime_s`: as of MemoryCache. Raises MissingDependency without the package redis.
    """

    def __init__(self, url: str, lifetime_s: float) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise MissingDependency(
                f"EMBEDDING_VECTOR_CACHE_REDIS_URL needs a package that is not installed ({error}): "
                "pip install 'embedshare[server]'"
            ) from None

        def connected(patience_s: float) -> Any:
            return redis.Redis.from_url(
                url, socket_timeout=patience_s, socket_connect_timeout=patience_s,
                retry=Retry(NoBackoff(), 0),
            )  # fmt: skip

        self._reading, self._writing = connected(PATIENCE_S), connected(WRITE_S)
        self._lifetime_s = lifetime_s
        self._error: type[Exception] = redis.RedisError
        self._breaker = Breaker(LIMITS)
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._counts = dict.fromkeys(("hits", "written", "dropped", "failures", "invalid"), 0)
        self._queue: queue.SimpleQueue[_Write] = queue.SimpleQueue()
        threading.Thread(target=self._write_all, name="cache-writer", daemon=True).start()

    def get(self, space: bytes, keys: Sequence[bytes], dimension: int) -> Stored | None:
        """Those of the keys that are there with vectors of at least `dimension` values; None if none is."""
        attempt = self._breaker.admit()
        if attempt is None:
            return None
        with attempt:
            try:
                values = cast("list[bytes | None]", self._reading.mget([_name(space, key) for key in keys]))
            except self._error as error:
                self._failed(attempt.failed(), error)
                return None
            if attempt.succeeded():
                logger.info("Reading cached vectors from Redis again")
        return self._decoded(keys, values, dimension)

    def put_later(self, space: bytes, keys: list[bytes], rows: np.ndarray, token_counts: list[int]) -> None:
        """Write these vectors in another thread, unless too many wait already."""
        with self._lock:
            if not self._breaker.is_closed or self._waiting_bytes + rows.nbytes > WAITING_BYTES:
                self._counts["dropped"] += len(keys)
                return
            self._waiting_bytes += rows.nbytes
        self._queue.put(_Write(space, keys, rows, token_counts))

    def clear(self, space: bytes | None = None) -> int:
        """Drop the vectors of one model, or all; returns their number. Raises ServerUnavailable."""
        pattern = _escaped(_PREFIX if space is None else _PREFIX + space) + b"*"
        gone = 0
        try:
            names: list[bytes] = []
            for name in self._writing.scan_iter(match=pattern, count=1000):
                names.append(name)
                if len(names) == 1000:
                    gone += int(self._writing.unlink(*names))
                    names.clear()
            return gone + (int(self._writing.unlink(*names)) if names else 0)
        except self._error as error:
            raise ServerUnavailable(f"Redis does not answer: {error}") from None

    def stats(self) -> dict[str, Any]:
        """Counts since the start, and whether Redis answered last time."""
        with self._lock:
            return {**self._counts, "connected": self._breaker.is_closed}

    def _decoded(self, keys: Sequence[bytes], values: list[bytes | None], dimension: int) -> Stored | None:
        now, least = time.time(), _HEADER.size + 4 * dimension
        positions: list[int] = []
        rows, counts, left = [], [], []
        for position, value in enumerate(values):
            if value is None:
                continue
            checksum, tokens, until = _HEADER.unpack_from(value) if _is_whole(value, least) else (b"", 0, 0.0)
            if checksum != _checksum(keys[position], value[len(checksum) :]) or (until and until <= now):
                self._count("invalid", 1)
                continue
            positions.append(position)
            rows.append(np.frombuffer(value, np.float32, offset=_HEADER.size))
            counts.append(tokens)
            left.append(until - now if until else float("inf"))
        if not positions:
            return None
        self._count("hits", len(positions))
        return Stored(positions, np.stack(rows), counts, left)

    def _write_all(self) -> None:
        while True:
            write = self._queue.get()
            try:
                self._write(write)
                self._count("written", len(write.keys))
            except self._error as error:
                attempt = self._breaker.admit()
                self._failed(attempt is not None and attempt.failed(), error)
            except Exception as error:  # an unexpected error must not end the writing
                logger.opt(exception=error).error("Could not write cached vectors to Redis")
            finally:
                with self._lock:
                    self._waiting_bytes -= write.rows.nbytes

    def _write(self, write: _Write) -> None:
        pipeline = self._writing.pipeline(transaction=False)
        for key, row, tokens in zip(write.keys, write.rows, write.token_counts, strict=True):
            lifetime_s = self._lifetime_s * random.uniform(1 - _JITTER, 1 + _JITTER)
            until = time.time() + lifetime_s if lifetime_s else 0.0
            rest = _HEADER.pack(b"", tokens, until)[8:] + row.tobytes()
            value = _checksum(key, rest) + rest
            pipeline.set(_name(write.space, key), value, px=int(lifetime_s * 1000) or None)
        pipeline.execute()

    def _failed(self, opened: bool, error: Exception) -> None:
        self._count("failures", 1)
        if opened:
            logger.warning("Computing what Redis may have cached (Redis does not answer: {})", error)

    def _count(self, name: str, count: int) -> None:
        with self._lock:
            self._counts[name] += count


class _Write(NamedTuple):
    space: bytes
    keys: list[bytes]
    rows: np.ndarray
    token_counts: list[int]


def _is_whole(value: bytes, least: int) -> bool:
    return len(value) >= least and (len(value) - _HEADER.size) % 4 == 0


def _name(space: bytes, key: bytes) -> bytes:
    return _PREFIX + space + key


def _checksum(key: bytes, rest: bytes) -> bytes:
    return blake2b(key + rest, digest_size=8).digest()


def _escaped(name: bytes) -> bytes:
    """A name as a part of a pattern."""
    return re.sub(rb"([*?\[\]^\\-])", rb"\\\1", name)
