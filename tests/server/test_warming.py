"""Warming embeds the texts of loaded models in small pieces and holds no call up."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from typing import Any, cast

import pytest

from embedshare.cache.cached import CachedVectors
from embedshare.cache.memory import MemoryCache
from embedshare.cache.most_asked import Asked
from embedshare.calls import CallContext, EmbedRequest
from embedshare.errors import EmbedshareError, Overloaded, TooLarge, UnknownModel
from embedshare.identity import ModelDescription
from embedshare.models.pool import ModelPool, State
from embedshare.models.spec import ModelSpec
from embedshare.server import warming
from embedshare.server.warming import CHARACTERS, TEXTS, Warmer
from tests.cache.test_cached import Model, check
from tests.processes import wait_for


class Pool:
    """A pool of one model that counts its pieces; `calls` are those of callers."""

    def __init__(self) -> None:
        self.model = Model()
        self.current = State.READY
        self.calls = 0
        self.errors: list[EmbedshareError] = []
        self.spec_of = ModelSpec(id="bge", name="bge")

    def spec(self, name: str) -> ModelSpec:
        if name != "bge":
            raise UnknownModel(name)
        return self.spec_of

    def state(self, name: str) -> State:
        return self.current

    def describe(self, name: str) -> ModelDescription:
        return self.model.description

    def lease(self, name: str, identity: str, context: CallContext) -> Any:
        assert context.is_check
        if self.errors:
            raise self.errors.pop(0)
        self.model.leases += 1
        return nullcontext(self.model)


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def stop() -> Any:
    event = threading.Event()
    yield event
    event.set()


def asked(*texts: str, prompt: str = "") -> list[Asked]:
    return [Asked(text, prompt, None, True) for text in texts]


def warmer(pool: Pool, cache: CachedVectors, stop: threading.Event) -> Warmer:
    return Warmer(cache, cast("ModelPool", pool), stop)


def test_all_texts_are_cached_as_they_were_asked_for_and_nothing_is_counted(
    pool: Pool, stop: threading.Event
) -> None:
    cache = CachedVectors(MemoryCache(1 << 20))
    texts = [f"text {number}" for number in range(100)]
    warmer(pool, cache, stop).add("bge", asked(*texts) + asked("text 1", "new", prompt="query: "))
    wait_for(lambda: cache.stats()["entries"] == 102, 20, "all texts")
    assert (cache.stats()["misses"], cache.stats()["hits"]) == (0, 0)
    pool.model.computed.clear()
    check(cache, pool.model, EmbedRequest(texts, ""))
    check(cache, pool.model, EmbedRequest(["new", "text 1"], "query: "))
    assert pool.model.computed == []


def test_pieces_are_small() -> None:
    long, longer = "x" * (CHARACTERS - 5), "y" * (CHARACTERS + 1)
    texts = [long, "abcde", "f", longer, *(f"text {number}" for number in range(TEXTS + 1))]
    pieces = [one.inputs for one in warming._pieces(asked(*texts))]
    assert pieces == [[long, "abcde"], ["f"], [longer], texts[4:-1], texts[-1:]]


def test_a_model_that_is_not_loaded_waits_and_one_that_is_gone_is_forgotten(
    pool: Pool, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "_LOAD_LOOK_S", 0.01)
    cache = CachedVectors(MemoryCache(1 << 20))
    pool.current = State.STANDBY
    warming_up = warmer(pool, cache, stop)
    warming_up.add("gone", asked("a"))
    warming_up.add("bge", asked("a", "b"))
    wait_for(lambda: "gone" not in warming_up._waiting, 20, "the model that is gone")
    assert cache.stats()["entries"] == 0
    pool.errors = [Overloaded("unloaded meanwhile", retry_after_s=1.0)]
    pool.current = State.READY
    wait_for(lambda: cache.stats()["entries"] == 2, 20, "the texts")
    wait_for(lambda: not warming_up._is_running, 20, "the end")
    warming_up.add("bge", asked("c"))
    wait_for(lambda: cache.stats()["entries"] == 3, 20, "a further text")


def test_a_text_that_fails_costs_its_piece_alone(pool: Pool, stop: threading.Event) -> None:
    cache = CachedVectors(MemoryCache(1 << 20))
    pool.errors = [TooLarge("no luck")]
    warmer(pool, cache, stop).add("bge", asked(*(f"text {number}" for number in range(2 * TEXTS))))
    wait_for(lambda: cache.stats()["entries"] == TEXTS, 20, "the second piece")
    assert pool.model.computed == [f"text {number}" for number in range(TEXTS, 2 * TEXTS)]


def test_while_there_are_calls_a_piece_waits(
    pool: Pool, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "PATIENCE_S", 0.3)
    cache = CachedVectors(MemoryCache(1 << 20))
    pool.calls, began = 1, time.monotonic()
    warmer(pool, cache, stop).add("bge", asked(*(f"text {number}" for number in range(10 * TEXTS))))
    wait_for(lambda: cache.stats()["entries"] >= 2 * TEXTS, 20, "two pieces")
    assert time.monotonic() - began >= 0.6
    pool.calls = 0
    wait_for(lambda: cache.stats()["entries"] == 10 * TEXTS, 20, "all texts")
