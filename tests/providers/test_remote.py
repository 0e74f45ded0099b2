"""Remote services: what they answer right arrives unchanged, and nothing else arrives."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from embedshare.calls import UNBOUNDED, CallContext, EmbedRequest
from embedshare.errors import (
    DeadlineExceeded,
    InvalidInput,
    NotServed,
    Overloaded,
    ProviderFailed,
    ProviderRefused,
    ProviderUnavailable,
    TooLarge,
)
from embedshare.providers.remote import Remote, Services
from tests.processes import wait_for
from tests.providers import service as faults
from tests.providers.conftest import Load, spec
from tests.providers.service import Service, status, vector

PROVIDERS = ("openai", "ollama", "tei")
TEXTS = [f"text number {number}" for number in range(10)]


def within(seconds: float, may_wait: bool = True) -> CallContext:
    return CallContext(time.monotonic() + seconds, may_wait=may_wait)


def embed(remote: Remote, texts: Any = TEXTS, context: CallContext = UNBOUNDED, **options: Any) -> np.ndarray:
    return remote.embed(EmbedRequest(texts, "", **options), context).rows


def right(texts: Any = TEXTS) -> np.ndarray:
    return np.array([vector(text) for text in texts], np.float32)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_vectors_arrive_in_the_order_of_their_texts_from_every_service(
    load: Load, service: Service, provider: str
) -> None:
    remote = load(provider)
    found = remote.embed(EmbedRequest(TEXTS, "prompt: "))
    np.testing.assert_array_equal(found.rows, right([f"prompt: {text}" for text in TEXTS]))
    assert found.tokens == 40  # four words a text, as this service counts
    assert (remote.description.dimension, remote.description.runtime) == (faults.DIMENSION, provider)
    assert embed(remote, []).shape == (0, faults.DIMENSION)
    cut = embed(remote, TEXTS, dimensions=3, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        cut, right()[:, :3] / np.linalg.norm(right()[:, :3], axis=1)[:, None], rtol=1e-5
    )


@pytest.mark.parametrize(("provider", "most"), [("openai", 2048), ("ollama", 64), ("tei", 4)])
def test_lists_are_cut_to_what_a_request_may_hold(
    load: Load, service: Service, provider: str, most: int
) -> None:
    texts = [f"t{number}" for number in range(2 * most + 1)]
    remote = load(provider)
    np.testing.assert_array_equal(embed(remote, texts), right(texts))
    sizes = sorted(len(asked.get("input", asked.get("inputs"))) for _, asked, _ in service.asked)
    assert sizes == [1, most, most]
    assert service.most_at_once <= 8


def test_a_request_has_at_most_300_000_tokens(load: Load, service: Service) -> None:
    texts = [("word " * 8000).strip() + str(number) for number in range(60)]  # 480,000 tokens, as it counts
    remote = load("openai")
    np.testing.assert_array_equal(embed(remote, texts), right(texts))
    for _, asked, _ in service.asked:
        assert sum(len(text.split()) for text in asked["input"]) <= 300_000
    assert len(service.asked) <= 3  # its answers tell how many bytes a token has


def test_prompts_of_the_file_are_written_before_each_text(load: Load) -> None:
    remote = load("ollama", prompts=(("query", "search_query: "),), default_prompt="query")
    assert remote.description.prompts == {"query": "search_query: "}
    for named in (EmbedRequest(["one"]), EmbedRequest(["one"], prompt_name="query")):
        np.testing.assert_array_equal(remote.embed(named).rows, right(["search_query: one"]))
    with pytest.raises(InvalidInput, match="unknown prompt 'other'"):
        remote.embed(EmbedRequest(["one"], prompt_name="other"))


def test_token_ids_go_to_services_that_take_them(load: Load) -> None:
    ids = [[1, 2, 3], [4]]
    np.testing.assert_array_equal(embed(load("openai"), ids), right(ids))
    np.testing.assert_array_equal(embed(load("tei"), ids), right(ids))
    with pytest.raises(InvalidInput, match="ollama embeds texts alone"):
        embed(load("ollama"), ids)


def test_ollama_never_truncates_and_tei_does_as_it_is_asked(load: Load, service: Service) -> None:
    embed(load("ollama"))
    assert service.asked[-1][1]["truncate"] is False
    remote = load("tei")
    embed(remote, truncate=False)
    embed(remote)
    assert {asked["truncate"] for _, asked, _ in service.asked} == {False, True}
    assert remote.description.max_seq_length == 77


def test_a_service_that_shows_no_tokens_says_so(load: Load) -> None:
    with pytest.raises(NotServed, match="a model of openai, which shows no tokens"):
        load("openai").tokenize(EmbedRequest(["a"], ""))


def test_floats_in_place_of_base64_are_the_same(load: Load, service: Service) -> None:
    service.floats = True
    np.testing.assert_array_equal(embed(load("openai")), right())


def test_a_missing_count_of_tokens_is_estimated(load: Load, service: Service) -> None:
    remote = load("openai")

    def silent(request: faults.Request) -> None:
        request.tokens = None

    service.always = faults.changed(silent)
    assert 10 <= remote.embed(EmbedRequest(TEXTS, "")).tokens <= sum(map(len, TEXTS))


def test_shortened_vectors_are_asked_for(load: Load, service: Service) -> None:
    remote = load("openai", request_dimensions=3)
    np.testing.assert_array_equal(embed(remote), np.array([vector(text, 3) for text in TEXTS], np.float32))
    assert remote.description.dimension == 3


WRONG = {
    "fewer": faults.fewer, "more": faults.more, "not finite": faults.not_finite, "ragged": faults.ragged,
    "wider": faults.wider, "not numbers": faults.not_numbers,
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_answer_that_cannot_be_right_is_an_error_and_is_not_passed_on(
    load: Load, service: Service, provider: str, wrong: str
) -> None:
    remote = load(provider)
    service.faults = [faults.changed(WRONG[wrong])]
    with pytest.raises(ProviderFailed, match=provider):
        embed(remote, TEXTS[:3], within(5))
    assert len(service.asked) == 1  # it would only be wrong again
    np.testing.assert_array_equal(embed(remote, TEXTS[:3], within(5)), right(TEXTS[:3]))


def test_vectors_out_of_order_are_put_in_order(load: Load, service: Service) -> None:
    remote = load("openai")
    service.faults = [faults.changed(faults.shuffled)]
    np.testing.assert_array_equal(embed(remote), right())
    service.faults = [faults.changed(faults.doubled_index)]
    with pytest.raises(ProviderFailed, match="is not that of the texts"):
        embed(remote)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"null", b'{"data": null}', b"<html></html>", b'{"data": []}']
)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_body_that_is_no_answer_is_an_error(
    load: Load, service: Service, provider: str, content: bytes
) -> None:
    remote = load(provider)
    service.faults = [faults.body(content)]
    with pytest.raises(ProviderFailed, match="sent no valid answer"):
        embed(remote, TEXTS[:3], within(5))


@pytest.mark.parametrize("fault", [faults.half, status(500), status(503), status(429), status(408)])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_failure_for_the_moment_is_tried_again(
    load: Load, service: Service, provider: str, fault: faults.Fault
) -> None:
    remote = load(provider)
    service.faults = [fault]
    np.testing.assert_array_equal(embed(remote, TEXTS[:3], within(20)), right(TEXTS[:3]))
    assert len(service.asked) == 2


def test_a_burst_of_errors_is_survived_within_the_deadline(load: Load, service: Service) -> None:
    remote = load("openai")
    service.faults = [status(500), status(502), faults.half]
    np.testing.assert_array_equal(embed(remote, TEXTS, within(30)), right())


def test_the_pause_that_a_service_asks_for_is_kept(load: Load, service: Service) -> None:
    remote = load("openai")
    service.faults = [status(429, Retry_After="1.5")]
    began = time.monotonic()
    np.testing.assert_array_equal(embed(remote, TEXTS, within(20)), right())
    assert time.monotonic() - began >= 1.5
    service.faults = [status(429, Retry_After="100")]
    with pytest.raises(Overloaded) as raised:  # no call waits longer than its own deadline
        embed(remote, TEXTS, within(2))
    assert 99 <= raised.value.fields["retry_after_s"] <= 100
    began, asked = time.monotonic(), len(service.asked)
    with pytest.raises(Overloaded):
        embed(remote, TEXTS, within(2))
    assert time.monotonic() - began < 0.5
    assert len(service.asked) == asked


@pytest.mark.parametrize(
    ("code", "kind"), [(401, None), (402, None), (404, None), (429, "insufficient_quota")]
)
def test_a_refusal_is_told_as_it_is_and_not_repeated(
    load: Load, service: Service, code: int, kind: str | None
) -> None:
    remote = load("openai")
    service.always = status(code, "the reason that it gives", kind)
    for _ in range(3):
        with pytest.raises(
            ProviderRefused, match=f"openai answers {code} for m: the reason that it gives"
        ) as one:
            embed(remote, TEXTS, within(5))
        assert 50 < one.value.fields["retry_after_s"] <= 60
    assert len(service.asked) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
def test_refused_texts_are_their_caller_s_error_and_no_fault_of_the_service(
    load: Load, service: Service, provider: str
) -> None:
    remote = load(provider)
    service.always = status(400, "the input exceeds the context length")
    for _ in range(10):
        with pytest.raises(InvalidInput, match="exceeds the context length"):
            embed(remote, ["long"], within(5))
    service.always = status(413)
    with pytest.raises(TooLarge):
        embed(remote, ["long"], within(5))
    service.always = None
    np.testing.assert_array_equal(embed(remote), right())


def test_ollama_s_missing_model_is_told_as_a_pull(load: Load, service: Service) -> None:
    with pytest.raises(ProviderRefused, match=r"pull it: ollama pull n \(it has m:latest\)"):
        load("ollama", name="n")
    remote = load("ollama")
    service.always = status(404, "model 'm' not found")
    with pytest.raises(ProviderRefused, match="pull it: ollama pull m"):
        embed(remote)


def test_a_slow_service_costs_a_call_its_deadline_and_no_more(load: Load, service: Service) -> None:
    remote = load("openai")
    for fault in (faults.slow(5), faults.drip):
        service.faults = [fault]
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            embed(remote, TEXTS, within(0.5))
        assert time.monotonic() - began < 1.5


def test_a_request_that_takes_too_long_is_tried_again(load: Load, service: Service) -> None:
    remote = load("openai", timeout_s=0.5)
    service.faults = [faults.drip]
    np.testing.assert_array_equal(embed(remote, TEXTS, within(20)), right())


def test_a_caller_that_leaves_ends_its_request(load: Load, service: Service) -> None:
    remote = load("openai")
    service.always = faults.drip
    gone = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(embed, remote, TEXTS, CallContext(is_gone=gone.is_set))
        wait_for(lambda: service.asked)
        gone.set()
        with pytest.raises(DeadlineExceeded, match="left"):
            call.result(5)
    assert remote.ask("active_operations", UNBOUNDED) == 0


def test_the_breaker_opens_for_a_dead_service_and_one_probe_closes_it(
    load: Load, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = load("openai")
    service.always = status(500)
    for _ in range(3):
        with pytest.raises(ProviderFailed):
            embed(remote, TEXTS, within(5, may_wait=False))
    asked = len(service.asked)
    with pytest.raises(ProviderUnavailable) as raised:  # open: it is not asked
        embed(remote, TEXTS, within(5, may_wait=False))
    assert 0 < raised.value.fields["retry_after_s"] <= 1.0
    assert len(service.asked) == asked
    assert remote.service()["breaker"] == "open"
    assert remote.ask("health", UNBOUNDED)["status"] == "degraded"
    service.always = faults.slow(0.3)
    time.sleep(raised.value.fields["retry_after_s"])
    with ThreadPoolExecutor(16) as threads:  # they wait for one probe
        calls = [threads.submit(embed, remote, TEXTS, within(20)) for _ in range(16)]
        wait_for(lambda: len(service.asked) > asked)
        assert len(service.asked) == asked + 1
        for call in calls:
            np.testing.assert_array_equal(call.result(20), right())
    assert remote.service()["breaker"] == "closed"


def test_the_cooldown_holds_for_every_later_try(load: Load, service: Service) -> None:
    remote = load("openai")
    service.always = status(500)
    with pytest.raises(ProviderFailed):
        embed(remote, TEXTS, within(8))
    tries = len(service.asked)
    assert tries <= 6  # three open the breaker, and each probe after its pause
    began = time.monotonic()
    with pytest.raises(ProviderUnavailable):
        embed(remote, TEXTS, within(30))
    assert time.monotonic() - began < 0.5
    assert len(service.asked) == tries


def test_a_service_that_is_nowhere_is_told_at_once(services: Services, service: Service) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for provider in PROVIDERS:
            one = spec(service, provider)
            remote = one.remote
            assert remote is not None
            moved = msgspec.structs.replace(one, remote=msgspec.structs.replace(remote, base_url=nowhere))
            with pytest.raises(ProviderFailed, match=f"{provider} does not answer for m"):
                Remote.load(moved, services, 100)


def test_keys_come_from_the_environment_or_a_file_and_go_to_their_own_address_alone(
    load: Load, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sent(remote: Remote) -> str | None:
        embed(remote)
        return service.asked[-1][2]

    monkeypatch.setenv("OPENAI_API_KEY", "openai-s-own")
    monkeypatch.setenv("OTHER_KEY", "another")
    assert sent(load("openai")) is None  # another address than OpenAI's
    assert sent(load("openai", api_key_env="OTHER_KEY")) == "Bearer another"
    file = tmp_path / "key"
    file.write_text("of the file\n".replace(" ", "-"))
    remote = load("openai", api_key_file=str(file))
    assert sent(remote) == "Bearer of-the-file"
    file.write_text("changed")
    assert sent(remote) == "Bearer changed"
    with pytest.raises(ProviderRefused, match="set MISSING_KEY in the model server's environment"):
        load("openai", api_key_env="MISSING_KEY")
    file.unlink()
    with pytest.raises(ProviderRefused, match="cannot be read"):
        embed(remote)


@pytest.mark.parametrize("provider", ["ollama", "tei"])
def test_keys_go_to_every_kind_of_service(
    load: Load, service: Service, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "of-the-proxy")
    embed(load(provider, api_key_env="THE_KEY"))
    assert service.asked[-1][2] == "Bearer of-the-proxy"
    embed(load(provider))
    assert service.asked[-1][2] is None
    with pytest.raises(ProviderRefused, match="set MISSING_KEY"):
        load(provider, api_key_env="MISSING_KEY")


def test_requests_a_minute_are_kept_to_by_waiting_then_overloaded(load: Load, service: Service) -> None:
    remote = load("openai", requests_per_minute=4)  # one of which loading has used
    for _ in range(3):
        embed(remote)
    with pytest.raises(Overloaded, match="in a minute") as raised:
        embed(remote, TEXTS, within(2))
    assert 50 < raised.value.fields["retry_after_s"] <= 60
    assert len(service.asked) == 3


def test_a_budget_of_the_month_is_not_exceeded(load: Load, service: Service) -> None:
    remote = load("openai", price_per_million_tokens=1e6, budget_per_month=1000)  # a token costs 1
    answered = 0
    refusal = None
    while refusal is None:
        try:
            embed(remote)
            answered += 1
        except Overloaded as error:
            refusal = error
    assert "of its budget of 1000 this month" in refusal.message
    assert refusal.fields["retry_after_s"] > 0
    cost = remote.service()["month_cost"]
    assert 7 + answered * 30 == cost <= 1000  # loading has read 7
    assert cost >= 1000 - 2 * sum(map(len, TEXTS))  # stopped by the last request's estimate, not long before


def test_figures_of_a_service(load: Load, service: Service) -> None:
    remote = load("openai")
    embed(remote)
    service.faults = [status(500)]
    embed(remote, TEXTS, within(20))
    shown = remote.service()
    assert (shown["breaker"], shown["tokens"], shown["error"]) == ("closed", 60, None)
    assert (shown["requests"]["answered"], shown["requests"]["temporary"], shown["requests"]["retries"]) == (
        3,
        1,
        1,
    )
    assert sum(shown["request_ms"]["counts"]) == 4
    stats = remote.ask("stats", UNBOUNDED)
    assert (stats["total_requests"], stats["failed_requests"], stats["sequences"]) == (2, 0, 20)


def test_one_failed_request_of_many_ends_the_others(load: Load, service: Service) -> None:
    remote = load("tei")
    service.faults = [None, status(400)]
    service.always = faults.slow(0.2)
    with pytest.raises(InvalidInput):
        embed(remote, [f"t{number}" for number in range(400)], within(20))
    wait_for(lambda: not service.at_once)
    assert len(service.asked) < 60  # of a hundred
