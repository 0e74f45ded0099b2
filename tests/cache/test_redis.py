"""Cached vectors in a real Redis: each key has its own row or none; a Redis that is away costs no call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from embedshare.cache.cached import CachedVectors
from embedshare.cache.memory import MemoryCache
from embedshare.cache.redis import PATIENCE_S, RedisStore
from embedshare.cache.shared import SharedLevel
from embedshare.calls import EmbedRequest
from embedshare.telemetry import tracing
from tests.cache.test_cached import TEXTS, Model, check, description
from tests.processes import wait_for
from tests.redis_server import RedisServer, needs_redis
from tests.tracing import memory_spans

pytestmark = needs_redis
SPACE, OTHER = b"s" * 16, b"*" * 16
KEYS = [bytes([number]) * 16 for number in range(20)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    redis.Redis.from_url(running.url).flushall()
    return running


def level(url: str, lifetime_s: float = 100.0) -> SharedLevel:
    return SharedLevel(RedisStore(url), lifetime_s)


@pytest.fixture
def cache(server: RedisServer) -> SharedLevel:
    return level(server.url)


def rows_of(keys: list[bytes]) -> np.ndarray:
    return np.stack([np.full(8, key[0] + 0.5, np.float32) for key in keys])


def write(cache: SharedLevel, space: bytes, keys: list[bytes]) -> None:
    before = cache.stats()["written"]
    cache.put_later(space, keys, rows_of(keys), [key[0] for key in keys])
    wait_for(lambda: cache.stats()["written"] == before + len(keys), 20, "the writing")


def test_a_key_has_its_own_row_with_the_time_it_has_left(cache: SharedLevel, server: RedisServer) -> None:
    write(cache, SPACE, KEYS[:10])
    found = level(server.url).get(SPACE, KEYS, 8)
    assert found is not None
    assert found.positions == list(range(10))
    assert np.array_equal(found.rows, rows_of(KEYS[:10]))
    assert found.token_counts == list(range(10))
    assert 89 < min(found.left_s) < max(found.left_s) <= 110
    assert cache.get(OTHER, KEYS, 8) is None
    client = redis.Redis.from_url(server.url)
    lives = [client.pttl(name) for name in client.scan_iter()]
    assert all(89_000 < one <= 110_000 for one in lives)


def test_each_level_s_look_is_a_span_with_its_hits(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, model = memory_spans(monkeypatch), Model()
    writer = level(server.url)
    check(CachedVectors(MemoryCache(1 << 20, 100.0), [writer]), model, EmbedRequest(TEXTS[:3], ""))
    wait_for(lambda: writer.stats()["written"] == 3, 20, "the writing")
    kept.clear()
    two_levels = CachedVectors(MemoryCache(1 << 20, 100.0), [level(server.url)])
    for _ in range(2):
        with tracing.entry("call", "server"):
            check(two_levels, model, EmbedRequest(TEXTS[:3], ""))
    looks = [
        span.attributes for span in kept.get_finished_spans() if span.name == "cache" and span.attributes
    ]
    assert [(look[tracing.CACHE_LEVEL], look[tracing.CACHE_HITS]) for look in looks] == [
        ("memory", 0), ("redis", 3), ("memory", 3),
    ]  # fmt: skip
    assert {look[tracing.TEXTS] for look in looks} == {3}


def test_a_value_that_is_not_whole_is_none(cache: SharedLevel, server: RedisServer) -> None:
    write(cache, SPACE, KEYS[:4])
    client = redis.Redis.from_url(server.url)
    names = sorted(client.scan_iter())
    value = client.get(names[0])
    client.set(names[0], value[:-1] + bytes([value[-1] ^ 1]))
    client.set(names[1], value[:10])
    client.set(names[2], client.get(names[3]))  # another key's
    found = cache.get(SPACE, KEYS[:4], 8)
    assert found is not None
    assert found.positions == [3]
    assert cache.stats()["invalid"] == 3
    assert cache.get(SPACE, KEYS[3:4], 9) is None  # of fewer values than the model's vectors


def test_the_vectors_of_one_model_are_dropped_alone(cache: SharedLevel) -> None:
    for space in (SPACE, OTHER):
        write(cache, space, KEYS)
    assert cache.dropped(cache.drop_later(OTHER, None)) == len(KEYS)
    assert cache.get(OTHER, KEYS, 8) is None
    assert cache.dropped(cache.drop_later(None, None)) == len(KEYS)


def test_a_second_server_computes_nothing_that_the_first_has(server: RedisServer) -> None:
    first, second = (CachedVectors(MemoryCache(1 << 20), [level(server.url)]) for _ in range(2))
    model, other = Model(), Model()
    check(first, model, EmbedRequest(TEXTS, "query: "))
    wait_for(lambda: first.stats()["redis"]["written"] == len(TEXTS), 20, "the writing")
    check(second, other, EmbedRequest([*TEXTS[::-1], "new"], "query: ", normalize=True))
    assert other.computed == ["new"]
    check(second, other, EmbedRequest(TEXTS, "query: "))  # from memory now
    assert second.stats()["redis"]["hits"] == len(TEXTS)
    check(second, other, EmbedRequest(TEXTS, "query: "))
    changed = Model(description("cd" * 32))
    check(second, changed, EmbedRequest(TEXTS, "query: "))
    assert changed.computed == TEXTS
    assert second.clear() >= len(TEXTS)


def test_a_redis_that_stops_costs_a_few_milliseconds_once_and_comes_back(server: RedisServer) -> None:
    cache, model = CachedVectors(MemoryCache(0), [level(server.url)]), Model()
    check(cache, model, EmbedRequest(TEXTS, ""))
    server.stop()
    try:
        took = []
        for number in range(200):
            began = time.perf_counter()
            check(cache, model, EmbedRequest([f"text while away {number}"], ""))
            took.append(time.perf_counter() - began)
        slow = [one for one in took if one > 0.9 * PATIENCE_S]
        assert len(slow) <= 2
        assert max(took) < PATIENCE_S + 0.1  # a shared machine's
        assert not cache.stats()["redis"]["connected"]
    finally:
        server.go_on()
    wait_for(
        lambda: check(cache, model, EmbedRequest(TEXTS, "")) or cache.stats()["redis"]["connected"],
        20,
        "Redis",
    )


def test_a_redis_that_is_nowhere_costs_nothing(tmp_path: Path) -> None:
    cache, model = CachedVectors(MemoryCache(1 << 20), [level("redis://127.0.0.1:1/0", 0.0)]), Model()
    check(cache, model, EmbedRequest(TEXTS, ""))
    check(cache, model, EmbedRequest(TEXTS, ""))
    assert model.computed == TEXTS
    assert cache.stats()["redis"]["failures"] >= 1
