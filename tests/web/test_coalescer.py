"""Requests that share one call to the model: which request waits for which, and each gets its own result."""

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
from embedshare.calls import EmbedRequest, EmbedResult, Timings
from embedshare.errors import InvalidInput, Overloaded
from embedshare.settings import Settings, WebSettings
from embedshare.telemetry import cpu_load, request_ids, tracing
from embedshare.web.coalescer import MOST_OWN_TOKENS, MOST_TOKENS, Coalescer
from tests.processes import free_port
from tests.tracing import memory_spans
from tests.usual_calls import Usual
from tests.web.server.test_listener import running

DESCRIPTION: Any = object()


class Model:
    """A model that answers `text 7` with 7 and records the calls; `before` may raise."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.calls: list[EmbedRequest] = []
        self.ids: list[str | None] = []
        self.before: Callable[[list[Any]], None] = lambda inputs: None

    def __call__(self, request: EmbedRequest) -> EmbedResult:
        inputs: list[Any] = request.inputs
        self.calls.append(request)
        self.ids.append(request_ids.current())
        self.before(inputs)
        time.sleep(self.takes_s)
        numbers = [int(one.split()[1]) if isinstance(one, str) else one[0] for one in inputs]
        counts = [number % 5 + 2 for number in numbers]
        return EmbedResult(np.array(numbers, np.float32)[:, None], counts, Timings(), DESCRIPTION)

    @property
    def sizes(self) -> list[int]:
        return [len(request.inputs) for request in self.calls]


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def all_at_once(
    callers: ThreadPoolExecutor, asking: Coalescer, texts: list[str]
) -> list[EmbedResult | Exception]:
    """Embed each text from its own caller, all at the same moment."""
    barrier = threading.Barrier(len(texts))

    def ask(number: int) -> EmbedResult | Exception:
        request_ids.enter(f"request-{number}")
        barrier.wait(10)
        try:
            return asking.ask(EmbedRequest([texts[number]]))
        except Exception as error:
            return error

    return list(callers.map(ask, range(len(texts))))


def known(model: Model, count: int = 8, patience_s: float = 0.3) -> Coalescer:
    """Return a coalescer that expects this many requests in flight."""
    asking = Coalescer(model, lambda: True)
    asking._delay = Usual(count, patience_s)
    return asking


def test_half_of_those_who_come_again_and_again_go_together_and_each_gets_its_own(
    callers: ThreadPoolExecutor,
) -> None:
    model = Model(takes_s=0.01)
    asking = known(model, count=12)

    def loop(caller: int) -> None:
        for turn in range(25):
            texts = [f"text {caller * 100 + turn}"] * (1 + turn % 3)
            found = asking.ask(EmbedRequest(texts))
            assert found.rows.tolist() == [[caller * 100 + turn]] * len(texts)
            assert found.token_counts == [(caller * 100 + turn) % 5 + 2] * len(texts)
            assert found.tokens == sum(found.token_counts)

    list(callers.map(loop, range(12)))
    assert len(model.calls) < 12 * 25 / 3  # about six requests share a call when no request is late


def test_a_coalesced_request_s_span_is_linked_to_the_one_whose_trace_has_the_call(
    callers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = memory_spans(monkeypatch)
    asking = known(Model(), count=8, patience_s=5.0)

    def ask(number: int) -> None:
        with tracing.entry(f"request {number}", "server"):
            asking.ask(EmbedRequest([f"text {number}"]))

    list(callers.map(ask, range(4)))  # half of the usual ones
    spans = kept.get_finished_spans()
    (leader,) = [span for span in spans if not span.links]
    assert len(spans) == 4
    linked = {link.context.span_id for span in spans if span is not leader for link in span.links}
    assert linked == {leader.context.span_id}  # type: ignore[union-attr]


def test_where_the_processor_has_time_to_spare_nobody_waits(callers: ThreadPoolExecutor) -> None:
    model = Model(takes_s=0.01)
    asking = Coalescer(model, lambda: False)
    asking._delay = Usual(8, patience_s=5.0)
    for _ in range(3):
        all_at_once(callers, asking, [f"text {number}" for number in range(8)])
    assert model.sizes == [1] * 24


def test_nobody_waits_long_for_those_who_do_not_come() -> None:
    model = Model()
    asking = known(model, patience_s=0.2)
    began = time.monotonic()
    assert asking.ask(EmbedRequest(["text 3"])).rows.tolist() == [[3]]
    assert 0.15 < time.monotonic() - began < 5
    assert model.sizes == [1]


def test_of_those_who_go_together_one_that_is_refused_is_refused_alone(callers: ThreadPoolExecutor) -> None:
    model = Model()
    asking = known(model)

    def refuse(inputs: list[Any]) -> None:
        if "text 5" in inputs:
            raise InvalidInput(f"text {inputs.index('text 5')} is refused")

    model.before = refuse
    found = all_at_once(callers, asking, [f"text {number}" for number in range(8)])
    refused = found.pop(5)
    assert isinstance(refused, InvalidInput)
    assert str(refused) == "text 0 is refused"  # the message of the same request sent alone
    assert [share.rows[0][0] for share in found if isinstance(share, EmbedResult)] == [0, 1, 2, 3, 4, 6, 7]
    assert max(model.sizes) > 1


def test_what_concerns_all_is_asked_once_and_told_to_each(callers: ThreadPoolExecutor) -> None:
    model = Model()
    asking = known(model)

    def overloaded(inputs: list[Any]) -> None:
        raise Overloaded("full", retry_after_s=1.5)

    model.before = overloaded
    found = all_at_once(callers, asking, [f"text {number}" for number in range(8)])
    assert [type(each) for each in found] == [Overloaded] * 8
    assert len({id(each) for each in found}) == 8  # each has its own error and traceback
    assert sum(model.sizes) == 8


def test_where_the_one_that_asks_is_interrupted_the_others_ask_for_themselves(
    callers: ThreadPoolExecutor,
) -> None:
    model = Model()
    asking = known(model)
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
    asking = known(model, count=12)
    long = "text 7 " + "long " * (3 * MOST_OWN_TOKENS // 5 + 1)

    def ask(number: int) -> EmbedResult:
        inputs: Any = [f"text {number}"]
        if number >= 8:
            inputs = [long] if number < 10 else [[number, 1, 2]]
        return asking.ask(EmbedRequest(inputs, normalize=bool(number % 2)))

    found = list(callers.map(ask, range(12)))
    assert [share.rows[0][0] for share in found] == [*range(8), 7, 7, 10, 11]
    for request in model.calls:
        if len(request.inputs) > 1:
            assert {int(str(text).split()[1]) % 2 for text in request.inputs} == {int(request.normalize)}
        assert long not in request.inputs or len(request.inputs) == 1


def test_what_goes_together_is_bounded_and_named_in_the_logs(callers: ThreadPoolExecutor) -> None:
    model = Model()
    asking = known(model, count=16)
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
    """Over real sockets, with the real model, on a machine that counts as busy."""
    monkeypatch.setattr(cpu_load, "BUSY_SHARE", -1.0)
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
