"""Requests that ask the model together: who waits for whom, and that each gets what is its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests

from embeddingClient import EmbeddingClient
from embedshare.calls import EmbedResult, Timings
from embedshare.errors import InvalidInput, Overloaded
from embedshare.settings import Settings, WebSettings
from embedshare.telemetry import cpu_load, request_ids
from embedshare.web import coalescer, steady_callers
from embedshare.web.coalescer import MOST_OWN_TOKENS, MOST_TOKENS, Coalescer, Options
from embedshare.web.steady_callers import SOON_S, SteadyCallers
from tests.processes import free_port
from tests.web.server.test_listener import running

PLAIN = Options(None, False, None, True)
OTHER = PLAIN._replace(normalize=True)
DESCRIPTION: Any = object()


class Model:
    """Answers each text with its number, `text 7` with 7, and remembers the calls; `before` may raise."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.calls: list[tuple[list[Any], Options]] = []
        self.ids: list[str | None] = []
        self.before: Callable[[list[Any]], None] = lambda inputs: None

    def __call__(self, inputs: list[Any], options: Options) -> EmbedResult:
        self.calls.append((inputs, options))
        self.ids.append(request_ids.current())
        self.before(inputs)
        time.sleep(self.takes_s)
        numbers = [int(one.split()[1]) if isinstance(one, str) else one[0] for one in inputs]
        counts = [number % 5 + 2 for number in numbers]
        return EmbedResult(np.array(numbers, np.float32)[:, None], counts, Timings(), DESCRIPTION)

    @property
    def sizes(self) -> list[int]:
        return [len(inputs) for inputs, _ in self.calls]


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def all_at_once(
    callers: ThreadPoolExecutor, asking: Coalescer, texts: list[str], options: Options = PLAIN
) -> list[EmbedResult | Exception]:
    """Each text asked for by a caller of its own, all at the same moment."""
    barrier = threading.Barrier(len(texts))

    def ask(number: int) -> EmbedResult | Exception:
        request_ids.enter(f"request-{number}")
        barrier.wait(10)
        try:
            return asking.ask([texts[number]], options, number)
        except Exception as error:
            return error

    return list(callers.map(ask, range(len(texts))))


def known(callers: ThreadPoolExecutor, model: Model, threads: int = 16, count: int = 8) -> Coalescer:
    """With so many callers who come again and again, and a clock that stands still: nobody is late."""
    asking = Coalescer(model, threads, lambda: True, clock=lambda: 1.0)
    for _ in range(3):
        all_at_once(callers, asking, [f"text {number}" for number in range(count)])
    model.calls.clear()
    model.ids.clear()
    return asking


def test_callers_who_come_back_soon_are_expected_and_others_are_not() -> None:
    callers, now = SteadyCallers(), 100.0
    for caller in range(6):
        callers.arrived(caller, now)
    assert callers.usual(now) == 6
    for caller in range(6):
        callers.left(caller, now)
    assert callers.usual(now) == 0  # whether they come again is not known
    now += SOON_S / 2
    for caller in range(4):
        callers.arrived(caller, now)
        callers.left(caller, now)
    assert callers.usual(now) == 4
    callers.arrived("a stranger", now)
    assert callers.usual(now) == 5
    now += SOON_S * 1.01
    assert callers.usual(now) == 1  # who does not come back soon is forgotten
    callers.arrived(0, now)
    callers.left(0, now)
    assert callers.usual(now) == 1


def test_a_caller_that_comes_twice_at_once_is_counted_twice_while_it_is_here() -> None:
    callers = SteadyCallers()
    for _ in range(2):
        callers.arrived("one connection", 1.0)
    assert callers.usual(1.0) == 2
    callers.left("one connection", 1.0)
    callers.left("one connection", 1.01)
    callers.arrived("one connection", 1.02)
    assert callers.usual(1.02) == 1


def test_half_of_those_who_come_again_and_again_go_together_and_each_gets_its_own(
    callers: ThreadPoolExecutor,
) -> None:
    model = Model(takes_s=0.01)
    asking = Coalescer(model, 16, lambda: True, clock=lambda: 1.0)

    def loop(caller: int) -> None:
        for turn in range(25):
            texts = [f"text {caller * 100 + turn}"] * (1 + turn % 3)
            found = asking.ask(texts, PLAIN, caller)
            assert found.rows.tolist() == [[caller * 100 + turn]] * len(texts)
            assert found.token_counts == [(caller * 100 + turn) % 5 + 2] * len(texts)
            assert found.tokens == sum(found.token_counts)

    list(callers.map(loop, range(12)))
    assert len(model.calls) < 12 * 25 / 3  # of about six each, where nobody is late


def test_where_the_processor_has_time_to_spare_nobody_waits(callers: ThreadPoolExecutor) -> None:
    model = Model(takes_s=0.01)
    asking = Coalescer(model, 16, lambda: False)
    for _ in range(3):
        all_at_once(callers, asking, [f"text {number}" for number in range(8)])
    assert model.sizes == [1] * 24


def test_nobody_waits_long_for_those_who_do_not_come(
    callers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    asking = known(callers, model)
    monkeypatch.setattr(coalescer, "PATIENCE_S", 0.2)
    began = time.monotonic()
    assert asking.ask(["text 3"], PLAIN, 0).rows.tolist() == [[3]]
    assert 0.15 < time.monotonic() - began < 5
    assert model.sizes == [1]


def test_of_those_who_go_together_one_that_is_refused_is_refused_alone(callers: ThreadPoolExecutor) -> None:
    model = Model()
    asking = known(callers, model)

    def refuse(inputs: list[Any]) -> None:
        if "text 5" in inputs:
            raise InvalidInput(f"text {inputs.index('text 5')} is refused")

    model.before = refuse
    found = all_at_once(callers, asking, [f"text {number}" for number in range(8)])
    refused = found.pop(5)
    assert isinstance(refused, InvalidInput)
    assert str(refused) == "text 0 is refused"  # as it says where it is alone
    assert [share.rows[0][0] for share in found if isinstance(share, EmbedResult)] == [0, 1, 2, 3, 4, 6, 7]
    assert max(model.sizes) > 1


def test_what_concerns_all_is_asked_once_and_told_to_each(callers: ThreadPoolExecutor) -> None:
    model = Model()
    asking = known(callers, model)

    def overloaded(inputs: list[Any]) -> None:
        raise Overloaded("full", retry_after_s=1.5)

    model.before = overloaded
    found = all_at_once(callers, asking, [f"text {number}" for number in range(8)])
    assert [type(each) for each in found] == [Overloaded] * 8
    assert len({id(each) for each in found}) == 8  # each its own, with its own traceback
    assert sum(model.sizes) == 8


def test_where_the_one_that_asks_is_interrupted_the_others_ask_for_themselves(
    callers: ThreadPoolExecutor,
) -> None:
    model = Model()
    asking = known(callers, model)
    failed = []

    def fail_once(inputs: list[Any]) -> None:
        if len(inputs) > 1 and not failed:
            failed.append(inputs)
            raise RuntimeError("the thread comes to an end")

    model.before = fail_once
    found = all_at_once(callers, asking, [f"text {number}" for number in range(8)])
    assert failed
    assert [type(each) for each in found].count(RuntimeError) == 1
    for number, each in enumerate(found):
        assert isinstance(each, RuntimeError) or each.rows.tolist() == [[number]]  # type: ignore[union-attr]


def test_requests_of_other_options_and_long_ones_and_token_ids_do_not_mix(
    callers: ThreadPoolExecutor,
) -> None:
    model = Model(takes_s=0.01)
    asking = known(callers, model, count=12)
    long = "text 7 " + "long " * (3 * MOST_OWN_TOKENS // 5 + 1)

    def ask(number: int) -> EmbedResult:
        inputs: Any = [f"text {number}"]
        if number >= 8:
            inputs = [long] if number < 10 else [[number, 1, 2]]
        return asking.ask(inputs, OTHER if number % 2 else PLAIN, number)

    found = list(callers.map(ask, range(12)))
    assert [share.rows[0][0] for share in found] == [*range(8), 7, 7, 10, 11]
    for inputs, options in model.calls:
        if len(inputs) > 1:
            assert {int(text.split()[1]) % 2 for text in inputs} == {int(options is OTHER)}
        assert not {long} & set(map(str, inputs)) or len(inputs) == 1


def test_what_goes_together_is_bounded_and_named_in_the_logs(callers: ThreadPoolExecutor) -> None:
    model = Model()
    asking = known(callers, model, threads=64, count=16)
    texts = [f"text {number} " + "b" * 3 * (MOST_OWN_TOKENS - 10) for number in range(16)]
    found = all_at_once(callers, asking, texts)
    assert [share.rows[0][0] for share in found if isinstance(share, EmbedResult)] == [*range(16)]
    assert 1 < max(model.sizes) <= MOST_TOKENS // (MOST_OWN_TOKENS - 10)
    assert sorted(one for ids in model.ids for one in (ids or "").split(",")) == sorted(
        f"request-{number}" for number in range(16)
    )


def test_a_worker_s_callers_go_together_and_get_what_they_get_alone(
    model: EmbeddingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over real sockets and the real model, on a machine that counts as busy."""
    monkeypatch.setattr(cpu_load, "BUSY_SHARE", -1.0)
    monkeypatch.setattr(steady_callers, "SOON_S", 10.0)  # callers of this process, which others may slow down
    texts = [f"what does a worker with {number} callers answer?" for number in range(16)]
    expected = model.embed(texts)
    before = model.client_stats()["calls"]
    with running(model, Settings(web=WebSettings(port=free_port()))) as listening:
        url = f"http://127.0.0.1:{listening.address[1]}"

        def loop(caller: int) -> None:
            with requests.Session() as session:
                for turn in range(20):
                    at = (caller + turn) % len(texts)
                    asked = {"model": "all-MiniLM-L6-v2", "input": texts[at]}
                    answer = session.post(f"{url}/v1/embeddings", json=asked, timeout=60).json()
                    row = np.array(answer["data"][0]["embedding"], np.float32)
                    assert float(row @ expected.rows[at]) > 0.999, answer
                    assert answer["usage"]["total_tokens"] == expected.token_counts[at]

        with ThreadPoolExecutor(8) as callers:
            list(callers.map(loop, range(8)))
    assert model.client_stats()["calls"] - before < 8 * 20 * 0.8
