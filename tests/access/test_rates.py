"""The rate limit of one caller: across workers, with a Redis that fails, and in the reported figures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from embedshare import private_file, wiring
from embedshare.access.rates import PATIENCE_S, Rates
from embedshare.errors import RateLimited
from embedshare.settings import ClientSettings, ServerSettings, Settings, WebSettings
from tests.forking import forks, holds_in_forked_child
from tests.processes import wait_for
from tests.redis_server import RedisServer, needs_redis


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    yield running
    running.kill()


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{message}", level="INFO")
    yield lines
    logger.remove(sink)


def let_through(rates: Rates, subject: str, tries: int) -> int:
    count = 0
    for _ in range(tries):
        try:
            rates.count(subject)
        except RateLimited:
            continue
        count += 1
    return count


def test_as_many_as_are_allowed_go_through_and_each_caller_has_them() -> None:
    rates = Rates("5/minute;100/hour")
    assert let_through(rates, "one", 20) == 5
    assert let_through(rates, "another", 3) == 3
    assert rates.redis_status() == "off"


def test_who_waits_as_long_as_is_said_goes_through() -> None:
    rates = Rates("4/second")
    let_through(rates, "one", 4)
    with pytest.raises(
        RateLimited, match="this caller sent more than the 4 requests in one second"
    ) as caught:
        rates.count("one")
    assert caught.value.fields["limit"] == "4/second"
    assert 1 <= caught.value.fields["retry_after_s"] <= 2
    time.sleep(caught.value.fields["retry_after_s"])
    rates.count("one")


def test_a_refused_request_does_not_count_and_the_longer_limit_holds_too() -> None:
    rates = Rates("3/second;5/hour")
    assert let_through(rates, "one", 50) == 3
    wait_for(lambda: let_through(rates, "one", 1), 5, "room in the next second")
    wait_for(lambda: let_through(rates, "one", 1), 5, "room in the next second")
    with pytest.raises(RateLimited) as caught:
        wait_for(lambda: rates.count("one"), 3, "no room in this hour")
    while caught.value.fields["limit"] == "3/second":
        time.sleep(0.3)
        with pytest.raises(RateLimited) as caught:
            rates.count("one")
    assert caught.value.fields["limit"] == "5/hour"
    assert caught.value.fields["retry_after_s"] > 60


@needs_redis
def test_two_processes_count_together_over_redis(redis: RedisServer) -> None:
    one, another = Rates("10/minute", redis.url), Rates("10/minute", redis.url)
    assert let_through(one, "caller", 6) + let_through(another, "caller", 20) == 10
    assert let_through(one, "caller", 5) == 0
    assert one.redis_status() == another.redis_status() == "connected"


@needs_redis
def test_two_deployments_on_one_redis_do_not_count_together(redis: RedisServer, tmp_path: Path) -> None:
    def settings(key: str | None, prefix: str | None = None) -> Settings:
        return Settings(
            server=ServerSettings(authkey=key, authkey_file=str(tmp_path / "none")),
            web=WebSettings(rate_limit="5/minute", redis_url=redis.url, redis_prefix=prefix),
        )

    workers = [wiring.rates(settings(key * 32)) for key in "aab"]
    assert [let_through(rates, "203.0.113.5", 4) for rates in workers] == [4, 1, 4]
    named = [wiring.rates(settings(key * 32, "shop")) for key in "ab"]
    assert [let_through(rates, "203.0.113.5", 4) for rates in named] == [4, 1]
    local = wiring.rates(dataclasses.replace(settings(None), client=ClientSettings(use_ipc=False)))
    assert let_through(local, "203.0.113.5", 9) == 5


@needs_redis
def test_before_the_key_is_there_a_worker_counts_for_itself_and_then_with_the_others(
    redis: RedisServer, tmp_path: Path
) -> None:
    given = Settings(
        server=ServerSettings(authkey_file=str(tmp_path / "key")),
        web=WebSettings(rate_limit="5/minute", redis_url=redis.url),
    )
    early = wiring.rates(given)
    assert let_through(early, "early", 9) == 5
    assert early.redis_status() == "unknown"
    private_file.replace(tmp_path / "key", b"k" * 40)
    late = wiring.rates(given)
    assert let_through(late, "early", 3) == 3
    assert let_through(early, "early", 9) == 2
    assert early.redis_status() == "connected"


@needs_redis
def test_while_redis_is_away_each_counts_for_itself_and_comes_back(
    redis: RedisServer, said: list[str]
) -> None:
    rates = Rates("10/minute", redis.url)
    assert let_through(rates, "lonely", 4) == 4
    redis.kill()
    began = time.monotonic()
    assert let_through(rates, "lonely", 20) == 10
    assert time.monotonic() - began < 2
    assert rates.redis_status() == "disconnected"
    redis.start()
    wait_for(lambda: rates.redis_status() == "connected", 10, "the return to Redis")
    assert let_through(rates, "lonely", 20) == 10  # the new Redis is empty
    assert len([line for line in said if "Redis does not answer" in line]) == 1
    assert len([line for line in said if "Redis answers" in line]) == 1


@forks
@needs_redis
def test_a_child_that_is_forked_while_redis_is_away_comes_back_by_itself(redis: RedisServer) -> None:
    rates = Rates("10/minute", redis.url)
    let_through(rates, "parent", 1)
    redis.kill()
    let_through(rates, "parent", 1)
    assert rates.redis_status() == "disconnected"

    def comes_back() -> bool:
        redis.start()
        try:
            wait_for(lambda: rates.redis_status() == "connected", 10, "the child's return to Redis")
        finally:
            redis.kill()
        return True

    try:
        assert holds_in_forked_child(comes_back)
    finally:
        redis.start()


@needs_redis
def test_a_redis_that_hangs_holds_nobody_up_twice(redis: RedisServer) -> None:
    rates = Rates("10/minute", redis.url)
    rates.count("patient")
    redis.stop()
    try:
        began = time.monotonic()
        rates.count("patient")
        assert time.monotonic() - began < 2 * PATIENCE_S + 1
        began = time.monotonic()
        assert let_through(rates, "patient", 9) == 9
        assert time.monotonic() - began < PATIENCE_S
    finally:
        redis.go_on()
    wait_for(lambda: rates.redis_status() == "connected", 10, "the return to Redis")


def test_a_model_s_rates_are_counted_apart_from_the_caller_s_and_other_models() -> None:
    rates = Rates("9/minute", by_model={"bge": "2/minute;100/hour", "minilm": "2/minute"})
    assert set(rates.models) == {"bge", "minilm"}
    assert let_through(rates, "one", 20) == 9
    for name in ("bge", "minilm"):
        rates.count_model("one", name)
        rates.count_model("one", name)
        with pytest.raises(RateLimited, match=f"EMBEDDING_MODEL_RATE_LIMITS allows for the model '{name}'"):
            rates.count_model("one", name)
        rates.count_model("another", name)
    assert let_through(Rates(""), "one", 500) == 500


@needs_redis
def test_the_workers_of_a_deployment_count_a_model_together_over_redis(redis: RedisServer) -> None:
    web = WebSettings(model_rate_limits=("bge=5/minute",), redis_url=redis.url, redis_prefix="by model")
    workers = [wiring.rates(Settings(web=web)) for _ in range(2)]
    for number in range(5):
        workers[number % 2].count_model("one", "bge")
    for worker in workers:
        with pytest.raises(RateLimited, match="5 requests in one minute"):
            worker.count_model("one", "bge")
        assert worker.redis_status() == "connected"
        worker.count("one")
    assert wiring.rates(Settings()) is None
