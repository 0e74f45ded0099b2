"""The cache in memory: each key has its own row, within the limit, whatever goes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.cache import memory
from embedshare.cache.memory import OVERHEAD_BYTES, MemoryCache

A, B = b"model a", b"model b"


def row_of(space: bytes, key: bytes, dimension: int) -> np.ndarray:
    """The only right row for this key."""
    seed = int.from_bytes(space + key, "big") % (1 << 32)
    return np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)


def put(cache: MemoryCache, space: bytes, keys: list[bytes], dimension: int = 8) -> None:
    rows = np.stack([row_of(space, key, dimension) for key in keys])
    cache.put(space, keys, rows, [len(key) for key in keys])


def check(cache: MemoryCache, space: bytes, keys: list[bytes], dimension: int = 8) -> set[bytes]:
    """The keys that are there, each with its own row."""
    found = cache.get(space, keys)
    if found is None:
        return set()
    for position, row, tokens in zip(found.positions, found.rows, found.token_counts, strict=True):
        assert np.array_equal(row, row_of(space, keys[position], dimension))
        assert tokens == len(keys[position])
    return {keys[position] for position in found.positions}


def names(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "clear"]),
        st.sampled_from([(A, 8), (B, 24)]),
        st.lists(st.sampled_from(names(60)), min_size=1, max_size=20, unique=True),
    ),
    max_size=60,
)


@given(STEPS, st.integers(0, 24_000))
def test_every_key_has_its_own_row_and_the_limit_holds(steps: list[tuple], limit: int) -> None:
    cache = MemoryCache(limit)
    for step, (space, dimension), keys in steps:
        if step == "put":
            put(cache, space, keys, dimension)
        elif step == "clear":
            cache.clear(space)
        check(cache, space, keys, dimension)
        assert cache.stats()["bytes"] <= limit
        assert cache.stats()["entries"] <= limit / (4 * 8 + OVERHEAD_BYTES)


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    cache = MemoryCache(200 * (32 + OVERHEAD_BYTES))
    often = names(20)
    put(cache, A, often)
    for start in range(1000, 3000, 10):
        assert check(cache, A, often) == set(often)
        put(cache, A, names(10, start))
    assert not check(cache, A, names(10, 1000))
    assert cache.stats()["evictions"] > 1000


def test_a_second_model_gets_its_share_of_a_full_cache() -> None:
    cache = MemoryCache(640 * (32 + OVERHEAD_BYTES))
    put(cache, A, names(600))
    put(cache, B, names(300))
    assert len(check(cache, B, names(300))) > 250
    assert len(check(cache, A, names(600))) > 250


def test_an_entry_lives_for_its_time_give_or_take_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(memory.time, "monotonic", lambda: now)
    cache = MemoryCache(1 << 20, lifetime_s=100.0)
    put(cache, A, names(200))
    now = 1089.0
    assert len(check(cache, A, names(200))) == 200
    now = 1100.0
    assert 20 < len(check(cache, A, names(200))) < 180
    now = 1111.0
    assert not check(cache, A, names(200))
    assert cache.stats()["entries"] == 0


def test_the_bytes_are_those_that_the_process_takes() -> None:
    """At most 1.15 of the vectors' own, as the limit counts them."""
    import tracemalloc

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    cache = MemoryCache(8 << 20)
    for start in range(0, 20_000, 100):
        keys = [number.to_bytes(16, "big") for number in range(start, start + 100)]
        cache.put(A, keys, np.zeros((100, 384), np.float32), [7] * 100)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    stats = cache.stats()
    assert stats["entries"] > 4000
    assert taken <= 1.15 * stats["entries"] * 384 * 4
    assert taken == pytest.approx(stats["bytes"], rel=0.06)


def test_nothing_is_kept_if_the_limit_holds_no_few_rows() -> None:
    cache = MemoryCache(0)
    put(cache, A, names(3))
    assert cache.get(A, names(3)) is None
    assert cache.stats() == {"entries": 0, "bytes": 0, "limit_bytes": 0, "evictions": 0}
