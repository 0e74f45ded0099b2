"""Memory, Redis and a database together: each row is its own text's, whatever each level has."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedshare.cache.cached import CachedVectors
from embedshare.cache.database import DatabaseStore
from embedshare.cache.entry import Entry
from embedshare.cache.memory import MemoryCache
from embedshare.cache.redis import RedisStore
from embedshare.cache.shared import SharedLevel, Store
from embedshare.calls import EmbedRequest
from embedshare.errors import ServerUnavailable
from tests.cache.test_cached import PROMPTS, REQUESTS, TEXTS, Model, check
from tests.cache.test_database import opened
from tests.processes import wait_for
from tests.redis_server import PROGRAM, RedisServer


class HeldStore:
    """A store in a dict, whose reads wait behind `gate` with what they found.

    `failing` makes it fail; `before_removal` is called before keys go.
    """

    name = title = "held"
    is_ready = True

    def __init__(self) -> None:
        self.values: dict[tuple[bytes, bytes], bytes] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.has_read = threading.Semaphore(0)
        self.failing = False
        self.before_removal: Callable[[], object] = lambda: None

    def read(self, space: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        found = [self.values.get((space, key)) for key in keys]
        self.has_read.release()
        assert self.gate.wait(20)
        return found

    def write(self, entries: Sequence[Entry]) -> None:
        if self.failing:
            raise OSError("no luck")
        self.values |= {(one.space, one.key): one.value for one in entries}

    def remove(self, space: bytes, keys: Sequence[bytes]) -> int:
        if self.failing:
            raise OSError("no luck")
        self.before_removal()
        return sum(self.values.pop((space, key), None) is not None for key in keys)

    def clear(self, space: bytes | None) -> int:
        gone = [key for key in self.values if space in (None, key[0])]
        return self.remove(b"", []) + sum(self.values.pop(key) is not None for key in gone)

    def maintain(self) -> None:
        pass

    def stats(self) -> dict[str, int]:
        return {}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Store]]:
    """Redis, if it is installed, and a database whose few rows go soon; its readers have time."""
    folder = tmp_path_factory.mktemp("levels")
    made: list[Store] = []
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedshare.cache.database.PATIENCE_S", 10.0)
        patch.setattr("embedshare.cache.redis.PATIENCE_S", 5.0)
        if PROGRAM is not None:
            redis = RedisServer(folder)
            stack.callback(redis.kill)
            made.append(RedisStore(redis.url))
        database = stack.enter_context(contextlib.closing(opened(f"sqlite:///{folder / 'vectors.db'}")))
        made.append(DatabaseStore(database, 10_000))
        yield made


def settle(levels: Sequence[SharedLevel]) -> None:
    """Wait for the writes so far."""
    for level in levels:
        level.dropped(level.drop_later(b"no model's", []))


ACTIONS = st.sampled_from(["", "", "settle", "restart", "clear", "clear texts", "clear database"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(REQUESTS, ACTIONS), max_size=20),
    st.sampled_from([0, 20_000, 1 << 20]),
    st.sampled_from([0.0, 0.002, 100.0]),
)
def test_every_row_is_its_own_text_s_whichever_level_has_it(
    stores: list[Store], steps: list[tuple[EmbedRequest, str]], limit: int, lifetime_s: float
) -> None:
    """Batches with repeats, with hits on each level; entries expire and go, and all at times."""
    levels = [SharedLevel(store, lifetime_s) for store in stores]
    wait_for(lambda: all(level.stats()["connected"] for level in levels), 20, "the levels")
    cache, model = CachedVectors(MemoryCache(limit, lifetime_s), levels), Model()
    cache.clear()
    for request, action in steps:
        check(cache, model, request)
        if action in ("settle", "restart"):
            settle(levels)
        if action == "restart":  # a server with an empty memory
            cache = CachedVectors(MemoryCache(limit, lifetime_s), levels)
        elif action == "clear texts":
            cache.clear_texts(model.description, TEXTS[:6], PROMPTS)
        elif action == "clear database":
            levels[-1].dropped(levels[-1].drop_later(None, None))
        elif action == "clear":
            cache.clear()
            assert cache.stats()["entries"] == 0
    settle(levels)
    stats = cache.stats()
    assert sum(stats["hits_by_level"].values()) == stats["hits"]


def test_what_a_level_has_goes_to_those_before_it(stores: list[Store]) -> None:
    levels = [SharedLevel(store, 100.0) for store in stores]
    wait_for(lambda: all(level.stats()["connected"] for level in levels), 20, "the levels")
    CachedVectors(MemoryCache(0), levels).clear()
    model, texts = Model(), TEXTS[:4]
    check(CachedVectors(MemoryCache(0), levels[-1:]), model, EmbedRequest(texts, ""))
    settle(levels)
    cache = CachedVectors(MemoryCache(1 << 20), levels)
    for _ in range(2):
        check(cache, model, EmbedRequest(texts, ""))
    expected = {"memory": 4, **{level.name: 0 for level in levels}, levels[-1].name: 4}
    assert cache.stats()["hits_by_level"] == expected
    settle(levels)
    for level in levels:
        alone = CachedVectors(MemoryCache(0), [level])
        check(alone, model, EmbedRequest(texts, ""))
        assert alone.stats()["hits_by_level"][level.name] == 4
    assert model.computed == texts


def test_an_entry_that_is_dropped_while_a_level_is_read_does_not_come_back() -> None:
    store = HeldStore()
    level = SharedLevel(store, 100.0)
    model = Model()
    check(CachedVectors(MemoryCache(0), [level]), model, EmbedRequest(TEXTS, ""))
    settle([level])
    upper = HeldStore()
    levels = [SharedLevel(upper, 100.0), level]
    cache = CachedVectors(MemoryCache(1 << 20), levels)
    store.gate.clear()
    while store.has_read.acquire(blocking=False):
        pass
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(check, cache, model, EmbedRequest(TEXTS, ""))
        assert store.has_read.acquire(timeout=20)
        assert cache.clear_texts(model.description, TEXTS[:3], PROMPTS) == 3
        store.gate.set()
        asked.result(20)
    settle(levels)
    assert len(upper.values) == len(store.values) == cache.stats()["entries"] == len(TEXTS) - 3
    model.computed.clear()
    check(cache, model, EmbedRequest(TEXTS, ""))
    assert model.computed == TEXTS[:3]


@pytest.mark.parametrize("asked_before", ["the lower level drops", "the upper level drops"])
def test_a_call_while_entries_are_dropped_brings_none_back(asked_before: str) -> None:
    lower, upper, model = HeldStore(), HeldStore(), Model()
    levels = [SharedLevel(upper, 100.0), SharedLevel(lower, 100.0)]
    check(CachedVectors(MemoryCache(0), levels), model, EmbedRequest(TEXTS, ""))
    settle(levels)
    cache = CachedVectors(MemoryCache(1 << 20), levels)
    if asked_before == "the lower level drops":
        upper.values.clear()
    dropping = lower if asked_before == "the lower level drops" else upper
    dropping.before_removal = lambda: check(cache, model, EmbedRequest(TEXTS, ""))
    assert cache.clear_texts(model.description, TEXTS[:3], PROMPTS) == 3
    dropping.before_removal = lambda: None
    settle(levels)
    assert model.computed == TEXTS  # the call was answered by the levels
    fresh = Model()
    check(cache, fresh, EmbedRequest(TEXTS, ""))
    assert fresh.computed == TEXTS[:3]


def test_a_text_that_is_dropped_while_it_is_computed_is_on_no_level() -> None:
    store, model = HeldStore(), Model()
    level = SharedLevel(store, 100.0)
    cache = CachedVectors(MemoryCache(1 << 20), [level])
    model.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(check, cache, model, EmbedRequest(TEXTS, ""))
        assert model.started.acquire(timeout=20)
        cache.clear_texts(model.description, TEXTS[:3], PROMPTS)
        model.gate.set()
        asked.result(20)
    settle([level])
    assert len(store.values) == cache.stats()["entries"] == len(TEXTS) - 3


def test_a_level_that_does_not_drop_is_told_and_the_others_have_dropped() -> None:
    bad, good, model = HeldStore(), HeldStore(), Model()
    levels = [SharedLevel(bad, 100.0), SharedLevel(good, 100.0)]
    cache = CachedVectors(MemoryCache(1 << 20), levels)
    check(cache, model, EmbedRequest(TEXTS, ""))
    settle(levels)
    bad.failing = True
    with pytest.raises(ServerUnavailable, match="held did not drop cached vectors: no luck"):
        cache.clear_texts(model.description, TEXTS, PROMPTS)
    assert (len(bad.values), len(good.values), cache.stats()["entries"]) == (len(TEXTS), 0, 0)


def test_writes_that_fail_open_the_breaker_and_end_nothing(tmp_path: Path) -> None:
    store, model = HeldStore(), Model()
    level = SharedLevel(store, 100.0)
    cache = CachedVectors(MemoryCache(0), [level])
    store.failing = True
    check(cache, model, EmbedRequest(TEXTS, ""))
    wait_for(lambda: level.stats()["failures"] == 1, 20, "the failure")
    assert not level.stats()["connected"]
    store.failing = False

    def is_written() -> Any:
        check(cache, model, EmbedRequest(TEXTS, ""))
        return level.stats()["connected"] and store.values

    wait_for(is_written, 20, "a probe that succeeds")
