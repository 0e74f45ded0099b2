"""Cached vectors in a Redis, for several servers of one model and for the next start."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, cast

from embedshare.cache.entry import Entry
from embedshare.errors import MissingDependency

#: Seconds that a call waits for Redis, once for several calls at a time; then it computes.
PATIENCE_S = 0.008
#: Seconds that a write may take, in a thread of its own.
WRITE_S = 1.0
_PREFIX = b"embedshare:vector:1:"
#: The most names of one command.
_NAMES = 1000


class RedisStore:
    """The Redis at a URL; see shared.Store. Raises MissingDependency without the package redis."""

    name = "redis"
    title = "Redis"
    is_ready = True

    def __init__(self, url: str) -> None:
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

    def read(self, space: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        return cast("list[bytes | None]", self._reading.mget([_name(space, key) for key in keys]))

    def write(self, entries: Sequence[Entry]) -> None:
        pipeline = self._writing.pipeline(transaction=False)
        now = time.time()
        for one in entries:
            left_ms = max(1, int((one.until - now) * 1000)) if one.until else None
            pipeline.set(_name(one.space, one.key), one.value, px=left_ms)
        pipeline.execute()

    def remove(self, space: bytes, keys: Sequence[bytes]) -> int:
        names = [_name(space, key) for key in keys]
        pieces = (names[start : start + _NAMES] for start in range(0, len(names), _NAMES))
        return sum(int(self._writing.unlink(*piece)) for piece in pieces)

    def clear(self, space: bytes | None) -> int:
        pattern = _escaped(_PREFIX if space is None else _PREFIX + space) + b"*"
        gone = 0
        names: list[bytes] = []
        for name in self._writing.scan_iter(match=pattern, count=_NAMES):
            names.append(name)
            if len(names) == _NAMES:
                gone += int(self._writing.unlink(*names))
                names.clear()
        return gone + (int(self._writing.unlink(*names)) if names else 0)

    def maintain(self) -> None:
        """Redis drops what has expired by itself, and its operator bounds its memory."""

    def stats(self) -> dict[str, int]:
        return {}


def _name(space: bytes, key: bytes) -> bytes:
    return _PREFIX + space + key


def _escaped(name: bytes) -> bytes:
    """A name as a part of a pattern."""
    return re.sub(rb"([*?\[\]^\\-])", rb"\\\1", name)
