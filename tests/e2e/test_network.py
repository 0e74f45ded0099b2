"""The connection between client and server fails during a message, or the server stops during a call."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import DeadlineExceeded, ProtocolError, ServerUnavailable
from tests.e2e.conftest import TEXTS, check
from tests.processes import ModelServer, wait_for
from tests.proxy import End, Proxy, Reset, Stall, Treatment, besides, cut, delayed, in_single_bytes, instead

#: An answer over 64 KiB, so that its header and its rows are sent separately.
BULK = [f"paragraph {number}" for number in range(160)]
TIMEOUT_S = 0.3
#: A slow machine takes a second for these texts, and a test here needs the answer.
BULK_TIMEOUT_S = 3.0


def check_error(
    client: EmbeddingClient,
    error: type[Exception] | tuple[type[Exception], ...],
    texts: list[str],
    timeout: float | None = None,
) -> None:
    """Fail unless the call raises this error in time."""
    timeout = timeout or (BULK_TIMEOUT_S if texts is BULK else TIMEOUT_S)
    began = time.monotonic()
    with pytest.raises(error):
        client.encode(texts, timeout=timeout)
    assert time.monotonic() - began < timeout + 1


@pytest.mark.parametrize(
    ("direction", "after", "texts"),
    [
        *(
            (direction, after, TEXTS[1:2])
            for direction in ("on_request", "on_answer")
            for after in (0, 3, 20)
        ),
        ("on_answer", 1000, TEXTS[1:2]),
        ("on_request", 2000, BULK),
        ("on_answer", 1000, BULK),
        ("on_answer", 200_000, BULK),
    ],
)
def test_half_a_message_costs_a_call_its_deadline_and_the_next_one_nothing(
    caller: EmbeddingClient, proxy: Proxy, expected: np.ndarray, direction: str, after: int, texts: list[str]
) -> None:
    setattr(proxy, direction, cut(after, Stall))
    check_error(caller, DeadlineExceeded, texts)
    for number in range(2, 5):
        check(caller, expected, number)
    assert proxy.opened == 2


@pytest.mark.parametrize("then", [Reset, End])
@pytest.mark.parametrize("after", [0, 3, 20, 1000, 200_000])
def test_a_connection_that_breaks_in_mid_answer_costs_a_connection(
    caller: EmbeddingClient,
    proxy: Proxy,
    expected: np.ndarray,
    after: int,
    then: type[Exception],
    reference: Any,
) -> None:
    texts = BULK if after > 1000 else TEXTS[5:6]
    proxy.on_answer = cut(after, then)
    rows = caller.encode(texts, timeout=10)
    assert (rows[::50] * reference.encode(texts[::50])).sum(1).min() > 0.9995
    check(caller, expected, 6)
    assert proxy.opened == 2


@pytest.mark.parametrize("then", [Reset, End])
@pytest.mark.parametrize("direction", ["on_request", "on_answer"])
def test_connections_that_all_break_are_an_error_in_time(
    caller: EmbeddingClient, proxy: Proxy, expected: np.ndarray, direction: str, then: type[Exception]
) -> None:
    proxy.persists = True
    setattr(proxy, direction, cut(10, then))
    check_error(caller, (ServerUnavailable, DeadlineExceeded), TEXTS[7:8], timeout=1)
    assert proxy.opened > 2
    proxy.heal()
    check(caller, expected, 8)


def test_connections_that_all_break_are_fallen_back_from_and_returned_to(
    server: ModelServer, proxy: Proxy, expected: np.ndarray
) -> None:
    with server.client(EMBEDDING_SERVER_PORT=str(proxy.port)) as client:
        check(client, expected, 0)
        proxy.persists = True
        proxy.on_answer = cut(1000, Reset)
        for number in range(1, 20):
            check(client, expected, number)
        assert client.health()["state"] == "falling back"
        proxy.heal()
        wait_for(lambda: client.health()["state"] == "connected", 30, "the return")
        for number in range(20, 40):
            check(client, expected, number)


def test_an_answer_in_single_bytes_is_an_answer(
    caller: EmbeddingClient, proxy: Proxy, expected: np.ndarray, reference: Any
) -> None:
    proxy.on_answer = proxy.on_request = in_single_bytes(0)
    for number in range(3):
        check(caller, expected, number)
    assert (caller.encode(BULK[:4]) * reference.encode(BULK[:4])).sum(1).min() > 0.9995
    assert proxy.opened == 1


@pytest.mark.parametrize("slow", [in_single_bytes(0.02), delayed(TIMEOUT_S + 0.3)], ids=["trickle", "late"])
@pytest.mark.parametrize("direction", ["on_request", "on_answer"])
def test_what_is_too_slow_meets_the_deadline_and_never_the_next_call(
    caller: EmbeddingClient, proxy: Proxy, expected: np.ndarray, direction: str, slow: Treatment
) -> None:
    setattr(proxy, direction, slow)
    check_error(caller, DeadlineExceeded, TEXTS[1:2])
    proxy.heal()
    for number in range(2, 5):
        check(caller, expected, number)
    assert proxy.opened == 2


def test_a_delay_within_the_deadline_costs_its_time_alone(
    caller: EmbeddingClient, proxy: Proxy, expected: np.ndarray
) -> None:
    proxy.on_answer = delayed(0.3)
    check(caller, expected, 1, timeout=2)
    check(caller, expected, 2, timeout=2)
    assert proxy.opened == 1


@pytest.mark.parametrize("treatment", [instead, besides])
@pytest.mark.parametrize("texts", [TEXTS[:1], BULK], ids=["one text", "bulk"])
def test_an_earlier_answer_that_comes_again_is_nobodys(
    caller: EmbeddingClient, proxy: Proxy, expected: np.ndarray, treatment: Any, texts: list[str]
) -> None:
    proxy.answers.clear()
    caller.encode(texts)
    proxy.on_answer = treatment(bytes(proxy.answers))
    if treatment is besides:
        check(caller, expected, 1)  # its own answer; the extra one waits for the next call
        proxy.heal()
    check_error(caller, ProtocolError, texts)
    proxy.heal()
    for number in range(2, 5):
        check(caller, expected, number)
    assert proxy.opened == 2


def test_answers_that_two_connections_swap_are_nobodys(
    caller: EmbeddingClient, proxy: Proxy, expected: np.ndarray
) -> None:
    both, held = threading.Barrier(2), []

    def swap(data: bytes) -> Iterator[bytes]:
        held.append(data)
        both.wait(5)
        yield held[1] if data is held[0] else held[0]

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for thread in (first, second):
            thread.submit(check, caller, expected, 1).result()
        proxy.on_answer = swap
        swapped = [
            thread.submit(check_error, caller, ProtocolError, TEXTS[:1], 5) for thread in (first, second)
        ]
        for future in swapped:
            future.result()
        proxy.heal()
        for number, thread in enumerate((first, second)):
            thread.submit(check, caller, expected, 2 + number).result()
    assert proxy.opened == 5  # one of this thread, two of each other thread


@pytest.fixture(scope="module")
def stoppable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server that a test can stop and continue."""
    if not hasattr(signal, "SIGSTOP"):
        pytest.skip("this system cannot stop a process")
    running = ModelServer(tmp_path_factory.mktemp("stoppable")).start()
    yield running
    running.kill()


def test_a_server_that_is_stopped_in_mid_call_mixes_up_no_answers(
    stoppable: ModelServer, expected: np.ndarray, reference: Any
) -> None:
    assert stoppable.process is not None
    bulk = [f"paragraph {number} " + "word " * 20 for number in range(1200)]
    counts: Counter[str] = Counter()
    done = threading.Event()

    def ask(client: EmbeddingClient, first: int) -> None:
        number = first
        while not done.is_set():
            number = (number + 7) % len(TEXTS)
            try:
                cosine = float(client.encode(TEXTS[number], timeout=0.2) @ expected[number])
                counts["answered" if cosine > 0.9995 else "wrong"] += 1
            except DeadlineExceeded:
                counts["out of time"] += 1

    with stoppable.client(EMBEDDING_FALLBACK="none") as client, ThreadPoolExecutor(7) as threads:
        asking = [threads.submit(ask, client, first) for first in range(6)]
        long_call = threads.submit(client.encode, bulk)
        for _ in range(4):
            before = counts["answered"]
            wait_for(lambda before=before: counts["answered"] > before + 10, what="answers")  # type: ignore[misc]
            assert not long_call.done()
            stoppable.process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            stoppable.process.send_signal(signal.SIGCONT)
        rows = long_call.result(60)
        done.set()
        for future in asking:
            future.result(10)
    print(f"\nthe server stopped four times: {dict(counts)}")
    assert (rows[::100] * reference.encode(bulk[::100])).sum(1).min() > 0.9995
    assert counts["out of time"] >= 4
    assert not counts["wrong"]
