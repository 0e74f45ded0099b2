"""Rate limits by caller, counted over all workers that share a Redis."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import cast

from limits import RateLimitItem, parse_many
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage, SlidingWindowCounterSupport
from limits.strategies import SlidingWindowCounterRateLimiter
from loguru import logger

from embedshare import platforms
from embedshare.errors import RateLimited

#: Seconds that Redis may take for an answer. A Redis that is down costs a request this twice, once.
PATIENCE_S = 0.25
#: Seconds between two probes of a Redis that is down.
PROBE_EVERY_S = 1.0


class Rates:
    """Counts requests in sliding windows; thread-safe.

    With `redis_url` the windows are in Redis, for all workers of one deployment together. While it is down,
    and without one, each process counts alone.
    """

    def __init__(
        self,
        rates: str,
        redis_url: str | None = None,
        deployment: Callable[[], str | None] = lambda: "default",
        by_model: Mapping[str, str] | None = None,
    ) -> None:
        """`rates` in the form of EMBEDDING_RATE_LIMIT: `100/second;5000/hour`; empty sets none.

        `by_model`: further ones by the names of models, as EMBEDDING_MODEL_RATE_LIMITS gives them.
        `deployment` names this deployment among others on the Redis; while it returns None, each request asks
        again.
        """
        self._items = _parsed(rates)
        self._by_model = {name: _parsed(given) for name, given in (by_model or {}).items()}
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._url, self._deployment = redis_url, deployment
        self._redis: SlidingWindowCounterRateLimiter | None = None
        self._counting = self._own
        self._changing = threading.Lock()
        platforms.after_fork_in_child(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._changing = threading.Lock()
        if self.redis_status() == "disconnected":
            self._start_waiting()

    def count(self, subject: str) -> None:
        """Count a request of `subject`'s.

        Raises RateLimited if there were too many; such a request does not count.
        """
        self._count(self._items, subject, "EMBEDDING_RATE_LIMIT allows")

    @property
    def models(self) -> Collection[str]:
        """The names of models that have rates of their own."""
        return self._by_model.keys()

    def count_model(self, subject: str, name: str) -> None:
        """Count a request of `subject`'s for the model whose rates have this name; see `count`."""
        allows = f"EMBEDDING_MODEL_RATE_LIMITS allows for the model {name!r}"
        self._count(self._by_model[name], f"{subject} model {name}", allows)

    def _count(self, items: list[RateLimitItem], subject: str, allows: str) -> None:
        if self._url is not None and self._redis is None:
            self._connect_redis(self._url)
        counting = self._counting
        try:
            _hit(counting, items, subject, allows)
        except StorageError as error:
            self._leave_redis(error)
            _hit(self._own, items, subject, allows)

    def redis_status(self) -> str:
        """The last known state: `off`, `unknown` (before the first request), `connected` or
        `disconnected`."""
        if self._redis is None:
            return "off" if self._url is None else "unknown"
        return "connected" if self._counting is self._redis else "disconnected"

    def _connect_redis(self, url: str) -> None:
        name = self._deployment()
        with self._changing:
            if self._redis is None and name is not None:
                self._counting = self._redis = _over_redis(url, name)

    def _leave_redis(self, error: StorageError) -> None:
        with self._changing:
            if self._counting is self._own:
                return
            self._counting = self._own
        logger.warning(
            "Counting requests in this worker alone (Redis does not answer: {})", error.storage_error
        )
        self._start_waiting()

    def _start_waiting(self) -> None:
        threading.Thread(target=self._wait_for_redis, name="embedshare-redis", daemon=True).start()

    def _wait_for_redis(self) -> None:
        assert self._redis is not None
        while True:
            time.sleep(PROBE_EVERY_S)
            if self._redis.storage.check():
                self._counting = self._redis
                logger.info("Counting requests of all workers together again (Redis answers)")
                return


def _over_redis(url: str, deployment: str) -> SlidingWindowCounterRateLimiter:
    """A limiter that connects with the first request."""
    from redis.backoff import NoBackoff  # only with a Redis
    from redis.retry import Retry

    storage = RedisStorage(
        url, key_prefix=f"embedshare:{deployment}", wrap_exceptions=True,
        socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S,
        retry=Retry(NoBackoff(), 1),  # type: ignore[arg-type]  # for connections that Redis has forgotten
    )  # fmt: skip
    return SlidingWindowCounterRateLimiter(storage)


def _parsed(rates: str) -> list[RateLimitItem]:
    """The rates, the one of the shortest time first."""
    return sorted(parse_many(rates) if rates else [], key=lambda item: item.get_expiry())


def _hit(
    counting: SlidingWindowCounterRateLimiter, items: list[RateLimitItem], subject: str, allows: str
) -> None:
    for item in items:
        if not counting.hit(item, subject):
            raise _refused(item, counting, subject, allows)


def _refused(
    item: RateLimitItem, counting: SlidingWindowCounterRateLimiter, subject: str, allows: str
) -> RateLimited:
    wait_s = max(1, math.ceil(_wait_s(item, counting, subject)))
    name = item.GRANULARITY.name
    return RateLimited(
        f"this caller sent more than the {item.amount:,} requests in one {name} that {allows}; "
        f"retry in {wait_s} s",
        retry_after_s=wait_s, limit=f"{item.amount}/{name}",
    )  # fmt: skip


def _wait_s(item: RateLimitItem, counting: SlidingWindowCounterRateLimiter, subject: str) -> float:
    """Seconds until one more request has room.

    The last window's requests count by the share of it that is less than a window ago. They fade first; this
    window's own fade when it is over.
    """
    storage = cast(SlidingWindowCounterSupport, counting.storage)
    window_s, most = item.get_expiry(), item.amount - 1
    last, last_s, now, now_s = storage.get_sliding_window(item.key_for(subject), window_s)
    if last and now <= most:
        return last_s - (most - now) * window_s / last
    fading_s = window_s * (1 - most / now) if now else 0.0
    return now_s % window_s + max(0.0, fading_s)
