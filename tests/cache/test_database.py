"""Cached vectors in each kind of database: each key has its own row or none; one that hangs costs no call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from loguru import logger
from sqlalchemy import func, select, update

from embedshare import platforms
from embedshare.cache.cached import CachedVectors
from embedshare.cache.database import OVERHEAD_BYTES, PATIENCE_S, DatabaseStore
from embedshare.cache.memory import MemoryCache
from embedshare.cache.shared import SharedLevel
from embedshare.calls import EmbedRequest
from embedshare.database.database import Database
from embedshare.database.tables import CachedVector
from embedshare.settings import OperationSettings, Settings
from tests.cache.test_cached import TEXTS, Model, check, description
from tests.processes import free_port, wait_for
from tests.proxy import Proxy, Stall, cut
from tests.settings_store.test_repository import SERVERS, own_database

SPACE, OTHER = b"s" * 16, b"\x00\xff" * 8
KEYS = [bytes([number]) * 16 for number in range(20)]
LIMIT = 1 << 20


def opened(url: str) -> Database:
    return Database.open(Settings(operation=OperationSettings(db_url=url)), Path("/nowhere"))


def level(database: Database, lifetime_s: float = 100.0, limit: int = LIMIT) -> SharedLevel:
    """A level that is ready."""
    made = SharedLevel(DatabaseStore(database, limit), lifetime_s)
    wait_for(lambda: made.stats()["connected"], 20, "the tables")
    return made


@pytest.fixture(scope="module", params=["sqlite", *SERVERS])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'vectors.db'}"
        return
    with own_database(request.param) as made:
        yield made


@pytest.fixture
def database(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database without vectors, whose readers have time: others use this machine too."""
    monkeypatch.setattr("embedshare.cache.database.PATIENCE_S", 10.0)
    with contextlib.closing(opened(url)) as one:
        store = DatabaseStore(one, LIMIT)
        store.maintain()
        store.clear(None)
        yield one


@pytest.fixture
def cache(database: Database) -> SharedLevel:
    return level(database)


def rows_of(keys: list[bytes]) -> np.ndarray:
    return np.stack([np.full(8, sum(key) + 0.5, np.float32) for key in keys])


def settle(cache: SharedLevel) -> None:
    """Wait for the writes so far."""
    cache.dropped(cache.drop_later(SPACE, []))


def write(cache: SharedLevel, space: bytes, keys: list[bytes], left_s: list[float] | None = None) -> None:
    cache.put_later(space, keys, rows_of(keys), [key[0] for key in keys], left_s)
    settle(cache)


def kept(cache: SharedLevel, space: bytes, keys: list[bytes]) -> set[bytes]:
    """The keys that are there, each with its own row."""
    found = cache.get(space, keys, 8)
    if found is None:
        return set()
    there = [keys[position] for position in found.positions]
    assert np.array_equal(found.rows, rows_of(there))
    return set(there)


def test_a_key_has_its_own_row_with_the_time_it_has_left(cache: SharedLevel, url: str) -> None:
    write(cache, SPACE, KEYS[:10])
    write(cache, SPACE, KEYS[10:12], [5.0, float("inf")])
    with contextlib.closing(opened(url)) as other:
        found = level(other).get(SPACE, KEYS, 8)
    assert found is not None
    assert found.positions == list(range(12))
    assert np.array_equal(found.rows, rows_of(KEYS[:12]))
    assert found.token_counts == list(range(12))
    assert 89 < min(found.left_s[:10]) < max(found.left_s[:10]) <= 110
    assert 4 < found.left_s[10] <= 5
    assert found.left_s[11] == float("inf")
    assert kept(cache, OTHER, KEYS) == set()


def test_a_row_that_is_not_whole_or_another_key_s_is_none(cache: SharedLevel, database: Database) -> None:
    write(cache, SPACE, KEYS[:4])
    with database.write() as session:
        value = session.get_one(CachedVector, (SPACE, KEYS[3])).value
        for key, broken in ((0, b""), (1, value[:-1] + bytes([value[-1] ^ 1])), (2, value)):
            session.execute(update(CachedVector).where(CachedVector.key == KEYS[key]).values(value=broken))
    assert kept(cache, SPACE, KEYS[:4]) == {KEYS[3]}
    assert cache.stats()["invalid"] == 3
    assert cache.get(SPACE, KEYS[3:4], 9) is None  # of fewer values than the model's vectors


def test_keys_and_models_are_dropped_alone(cache: SharedLevel) -> None:
    for space in (SPACE, OTHER):
        write(cache, space, KEYS)
    assert cache.dropped(cache.drop_later(OTHER, [*KEYS[:3], b"unknown" + b"!" * 9])) == 3
    assert kept(cache, OTHER, KEYS) == set(KEYS[3:])
    assert cache.dropped(cache.drop_later(OTHER, None)) == len(KEYS) - 3
    assert kept(cache, SPACE, KEYS) == set(KEYS)
    assert cache.dropped(cache.drop_later(None, None)) == len(KEYS)
    assert kept(cache, SPACE, KEYS) == set()


def test_thousands_of_keys_are_found_and_dropped_in_pieces(cache: SharedLevel) -> None:
    keys = [number.to_bytes(16, "big") for number in range(2500)]
    for start in range(0, len(keys), 500):
        write(cache, SPACE, keys[start : start + 500])
    assert cache.stats()["written"] == 2500
    assert kept(cache, SPACE, keys) == set(keys)
    assert cache.dropped(cache.drop_later(None, None)) == 2500


def test_the_oldest_go_beyond_the_limit_and_expired_rows_at_once(database: Database) -> None:
    size = 20 + 32 + OVERHEAD_BYTES
    cache = level(database, limit=50 * size)
    keys = [number.to_bytes(16, "big") for number in range(200)]
    for start in range(0, 200, 10):
        write(cache, SPACE, keys[start : start + 10])
        with database.read() as session:
            taken = session.scalar(select(func.sum(CachedVector.size))) or 0
        assert taken <= (50 + 10) * size
    there = kept(cache, SPACE, keys)
    assert 40 <= len(there) <= 50
    assert set(keys[-10:]) <= there
    write(cache, SPACE, KEYS[:5], [-1.0] * 5)
    assert kept(cache, SPACE, KEYS[:5]) == set()
    DatabaseStore(database, LIMIT).maintain()
    with database.read() as session:
        assert session.scalar(select(func.count()).where(CachedVector.key.in_(KEYS[:5]))) == 0


def test_servers_that_write_the_same_keys_at_once_lose_none(url: str, database: Database) -> None:
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(3) as threads:
        servers = [level(stack.enter_context(contextlib.closing(opened(url)))) for _ in range(3)]
        for _ in range(10):
            list(threads.map(lambda one: write(one, SPACE, KEYS), servers))
        for one in servers:
            assert one.stats()["written"] == 10 * len(KEYS)
            assert kept(one, SPACE, KEYS) == set(KEYS)


def test_a_second_server_computes_nothing_that_the_first_has(url: str, database: Database) -> None:
    with contextlib.closing(opened(url)) as other:
        levels = level(database), level(other)
        first, second = (CachedVectors(MemoryCache(1 << 20), [one]) for one in levels)
        model, another = Model(), Model()
        check(first, model, EmbedRequest(TEXTS, "query: "))
        settle(levels[0])
        check(second, another, EmbedRequest([*TEXTS[::-1], "new"], "query: ", normalize=True))
        assert another.computed == ["new"]
        check(second, another, EmbedRequest(TEXTS, "query: "))
        assert second.stats()["hits_by_level"] == {"memory": len(TEXTS), "database": len(TEXTS)}
        changed = Model(description("cd" * 32))
        check(second, changed, EmbedRequest(TEXTS, "query: "))
        assert changed.computed == TEXTS


def times_of_calls(cache: CachedVectors, count: int) -> list[float]:
    """The seconds of calls for texts that nothing has, each with the right row."""
    model, took = Model(), []
    for number in range(count):
        began = time.perf_counter()
        check(cache, model, EmbedRequest([f"text {number} while away {began}"], ""))
        took.append(time.perf_counter() - began)
    return took


@pytest.mark.parametrize("kind", SERVERS)
def test_a_database_that_hangs_costs_a_few_milliseconds_once_and_comes_back(kind: str) -> None:
    with own_database(kind) as direct, contextlib.ExitStack() as stack:
        port = {"mariadb": 3306, "postgresql": 5432}[kind]
        proxy = stack.enter_context(contextlib.closing(Proxy(port)))
        database = opened(direct.replace(str(port), str(proxy.port)))
        stack.enter_context(contextlib.closing(database))
        shared = level(database)
        cache, model = CachedVectors(MemoryCache(0), [shared]), Model()
        check(cache, model, EmbedRequest(TEXTS, ""))
        settle(shared)
        proxy.on_request, proxy.persists = cut(0, Stall), True
        took = times_of_calls(cache, 200)
        assert len([one for one in took if one > 0.9 * PATIENCE_S]) <= 4
        assert max(took) < PATIENCE_S + 0.1  # a shared machine's
        assert not shared.stats()["connected"]
        proxy.heal()
        wait_for(lambda: _is_read(cache, shared), 40, "the database")


def _is_read(cache: CachedVectors, shared: SharedLevel) -> bool:
    before = shared.stats()["hits"]
    check(cache, Model(), EmbedRequest(TEXTS, ""))
    return bool(shared.stats()["hits"] > before)


def test_a_database_that_is_away_at_the_start_costs_nothing_and_is_used_once_it_is_there() -> None:
    with platforms.exclusive_listener("127.0.0.1", 0, 100) as silent:  # accepts connections, never answers
        urls = [f"mysql://u:hunter2@127.0.0.1:{port}/d" for port in (silent.getsockname()[1], free_port())]
        lines: list[str] = []
        sink = logger.add(lines.append, format="{level} {message}")
        for one in urls:
            with contextlib.closing(opened(one)) as database:
                cache = CachedVectors(
                    MemoryCache(1 << 20), [SharedLevel(DatabaseStore(database, LIMIT), 0.0)]
                )
                assert max(times_of_calls(cache, 50)) < 0.1
                wait_for(lambda: cache.stats()["database"]["failures"] > 0, 20, "the failure")  # noqa: B023
                assert not cache.stats()["database"]["connected"]
        logger.remove(sink)
    assert "hunter2" not in "".join(lines)


def test_a_database_that_comes_later_is_used_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedshare.cache.shared.REOPEN_S", 0.1)
    folder = tmp_path / "later"
    folder.write_text("a file where the folder should be")
    with contextlib.closing(opened(f"sqlite:///{folder / 'vectors.db'}")) as database:
        cache = SharedLevel(DatabaseStore(database, LIMIT), 0.0)
        wait_for(lambda: cache.stats()["failures"] > 0, 20, "the failure")
        cache.put_later(SPACE, KEYS, rows_of(KEYS), [1] * len(KEYS))
        wait_for(lambda: cache.stats()["dropped"] == len(KEYS), 20, "the end of the writes")
        folder.unlink()
        wait_for(lambda: cache.stats()["connected"], 20, "the tables")
        write(cache, SPACE, KEYS)
        assert kept(cache, SPACE, KEYS) == set(KEYS)
