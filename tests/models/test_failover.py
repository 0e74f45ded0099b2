"""Models of one proven space answer for each other, without waiting for a dead one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from embedshare.calls import CallContext, EmbedRequest, EmbedResult
from embedshare.errors import InvalidInput, ModelMismatch, ModelSwapped, ProviderFailed, ProviderUnavailable
from embedshare.models import failover
from embedshare.models.canaries import Canaries
from embedshare.models.pool import ModelPool
from embedshare.models.registry import Registry
from embedshare.models.spec import ModelSpec
from embedshare.providers.local import Devices
from embedshare.providers.remote import Services
from embedshare.server import model_loader
from embedshare.settings import Settings
from tests.processes import wait_for
from tests.providers import service as faults
from tests.providers.conftest import spec
from tests.providers.service import Service, status, vector

TEXTS = ["one", "two", "three"]
Pool = Callable[..., ModelPool]


@pytest.fixture(scope="module")
def services() -> Services:
    from embedshare.providers.event_loop import EventLoop
    from embedshare.providers.spending import Spending

    return Services(EventLoop(), Spending())


@pytest.fixture
def ends() -> Iterator[list[Service]]:
    made = [Service() for _ in range(3)]
    yield made
    for one in made:
        one.stop()


@pytest.fixture
def pool(services: Services, tmp_path: Path) -> Iterator[Pool]:
    """Pools whose spaces are kept in one folder, as those of a server before and after its restart."""
    made = []
    shared = model_loader.Shared(Devices(), services, Canaries(tmp_path / "spaces"))

    def load(one: ModelSpec, settings: Settings, check: Callable[[], None]) -> Any:
        return model_loader.load(one, settings, check, shared)

    def watch(provider: Any, ended: threading.Event) -> None:
        ended.wait()

    def make(*specs: ModelSpec) -> ModelPool:
        made.append(ModelPool(Registry(specs), Settings.load({}), watch, load))
        return made[-1]

    yield make
    for one in made:
        for entry in one.entries():
            one.unload(entry["id"])
        one.close()


def named(service: Service, name: str, **fields: Any) -> ModelSpec:
    made = spec(service, fields.pop("provider", "openai"), **{"space": "s", **fields})
    return msgspec.structs.replace(made, id=name)


def ask(pool: ModelPool, name: str = "a", seconds: float = 10.0, identity: str | None = None) -> EmbedResult:
    context = CallContext(time.monotonic() + seconds)
    return failover.embed(pool, name, identity, EmbedRequest(TEXTS, ""), context)


def right() -> np.ndarray:
    return np.array([vector(text) for text in TEXTS], np.float32)


def asked(service: Service) -> int:
    """The requests with these texts; those of loading have others."""
    return sum(body.get("input", body.get("inputs")) == TEXTS for _, body, _ in service.asked)


def test_a_dead_provider_s_calls_go_to_the_next_without_waiting(pool: Pool, ends: list[Service]) -> None:
    first, second, _ = ends
    served = pool(named(first, "a", failover=("b",)), named(second, "b", provider="tei"))
    served.load("b")
    identity = ask(served).identity
    assert (asked(first), asked(second)) == (1, 0)
    first.always = status(500)
    for _ in range(3):
        found = ask(served, identity=identity)
        np.testing.assert_array_equal(found.rows, right())
        assert (found.identity, found.description.runtime) == (identity, "tei")
    tries = asked(first)
    began = time.monotonic()
    for _ in range(10):
        ask(served)
    assert time.monotonic() - began < 0.9  # before the first probe is due
    assert (asked(first), asked(second)) == (tries, 13)
    assert served.entry("a")["failovers"] == 13


def test_the_first_comes_back_after_one_good_probe(pool: Pool, ends: list[Service]) -> None:
    first, second, _ = ends
    served = pool(named(first, "a", failover=("b",)), named(second, "b"))
    ask(served, "b")
    ask(served)
    first.always = status(500)
    for _ in range(3):
        ask(served)
    tries = asked(first)
    first.always = faults.slow(0.2)

    def is_back() -> bool:
        ask(served)
        return asked(first) > tries

    wait_for(is_back, 10)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: ask(served), range(8)))
    assert served.entry("a")["service"]["breaker"] == "closed"
    assert asked(first) == tries + 1 + 8


def test_a_probe_is_one_call_and_the_others_go_on_to_the_next(pool: Pool, ends: list[Service]) -> None:
    first, second, _ = ends
    served = pool(named(first, "a", failover=("b",)), named(second, "b"))
    ask(served, "b")
    ask(served)
    first.always = status(500)
    for _ in range(3):
        ask(served)
    tries = asked(first)
    first.always = faults.slow(1.0)
    time.sleep(served.entry("a")["service"]["retry_after_s"] + 0.01)
    with ThreadPoolExecutor(16) as threads:
        calls = [threads.submit(ask, served) for _ in range(16)]
        for call in calls:
            np.testing.assert_array_equal(call.result(10).rows, right())
    assert asked(first) == tries + 1


def test_a_slow_provider_leaves_time_for_the_next(pool: Pool, ends: list[Service]) -> None:
    first, second, _ = ends
    served = pool(named(first, "a", failover=("b",)), named(second, "b"))
    ask(served, "b")
    ask(served)
    first.always = faults.drip
    began = time.monotonic()
    assert ask(served, seconds=2.0).description.runtime == "openai"
    assert time.monotonic() - began < 1.5
    began = time.monotonic()
    ask(served, seconds=2.0)
    assert time.monotonic() - began < 0.5  # its breaker is open by now


def test_all_of_them_down_is_an_error_with_the_earliest_time_to_come_back(
    pool: Pool, ends: list[Service]
) -> None:
    first, second, third = ends
    served = pool(
        named(first, "a", failover=("b", "c")), named(second, "b"), named(third, "c", provider="ollama")
    )
    for name in "abc":
        ask(served, name)
    first.always = status(429, Retry_After="30")
    second.always = status(503, Retry_After="7")
    third.always = status(402, "no credit is left")
    for _ in range(2):
        with pytest.raises(ProviderUnavailable, match="no model answers for a; retry in") as raised:
            ask(served, seconds=5)
        assert 5 < raised.value.fields["retry_after_s"] <= 7
        assert "no credit is left" in raised.value.message
    assert (asked(first), asked(second), asked(third)) == (2, 2, 2)


def test_texts_that_are_refused_go_to_no_other(pool: Pool, ends: list[Service]) -> None:
    first, second, _ = ends
    served = pool(named(first, "a", failover=("b",)), named(second, "b"))
    ask(served)
    first.always = status(400, "too long")
    with pytest.raises(InvalidInput, match="too long"):
        ask(served)
    assert second.asked == []


def test_a_model_of_another_space_is_never_asked(pool: Pool, ends: list[Service]) -> None:
    first, second, _ = ends
    second.salt = "another model"
    served = pool(named(first, "a", failover=("b",)), named(second, "b"))
    ask(served)
    with pytest.raises(ModelMismatch, match="b is not of the space 's', which m defined: the vectors"):
        ask(served, "b")
    first.always = status(500)
    with pytest.raises(ProviderUnavailable, match="not of the space"):
        ask(served, seconds=3)
    assert asked(second) == 0


def test_a_space_is_proved_while_the_first_is_away_and_after_a_restart(
    pool: Pool, ends: list[Service]
) -> None:
    first, second, third = ends
    specs = (
        named(first, "a", failover=("b", "c")), named(second, "b"), named(third, "c", provider="tei")
    )  # fmt: skip
    identity = ask(pool(*specs)).identity
    first.always = status(500)
    second.salt = "swapped since"
    restarted = pool(*specs)
    found = ask(restarted)
    np.testing.assert_array_equal(found.rows, right())
    assert (found.identity, asked(second), asked(third)) == (identity, 0, 1)
    assert failover.describe(restarted, "a", CallContext(time.monotonic() + 5)).identity == identity
    with pytest.raises(ModelSwapped):
        ask(restarted, identity="another")


def test_a_remote_model_that_does_not_load_is_tried_again_soon(pool: Pool, ends: list[Service]) -> None:
    first = ends[0]
    first.always = status(500)
    served = pool(named(first, "a", space=None))
    with pytest.raises(ProviderFailed, match="answers 500") as raised:
        ask(served)
    with pytest.raises(ProviderFailed) as raised:
        ask(served)
    assert 0 < raised.value.fields["retry_after_s"] <= 1.0
    assert len(first.asked) == 1
    first.always = None
    time.sleep(raised.value.fields["retry_after_s"])
    np.testing.assert_array_equal(ask(served).rows, right())


def test_models_without_a_space_have_identities_of_their_own(pool: Pool, ends: list[Service]) -> None:
    first, second, _ = ends
    served = pool(named(first, "a", space=None), named(second, "b", space=None, provider="tei"))
    assert ask(served, "a").identity != ask(served, "b").identity


def test_a_call_that_another_model_answers_is_no_failed_call(pool: Pool, ends: list[Service]) -> None:
    first, second, _ = ends
    served = pool(named(first, "a", failover=("b",)), named(second, "b"))
    ask(served)
    ask(served, "b")
    first.always = second.always = status(500)
    with pytest.raises(ProviderUnavailable):
        ask(served, seconds=3)
    stats = [provider.ask("stats", CallContext()) for _, provider in served.providers()]
    counts = [(one["total_requests"], one["failed_requests"]) for one in stats]
    assert counts == [(2, 0), (3, 1)]  # one each for the canaries


def test_a_service_that_hangs_while_it_is_loaded_holds_no_later_call_up(
    pool: Pool, ends: list[Service]
) -> None:
    first, second, _ = ends
    first.always = faults.drip
    served = pool(named(first, "a", failover=("b",)), named(second, "b"))
    served.load("b")
    began = time.monotonic()
    ask(served)  # waits for the load a while
    assert time.monotonic() - began < 4
    began = time.monotonic()
    for _ in range(5):
        np.testing.assert_array_equal(ask(served).rows, right())
    assert time.monotonic() - began < 1
