"""A slow server costs a caller no more than its deadline, and computes nothing for callers that have left."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import DeadlineExceeded
from tests.processes import ModelServer, wait_for

#: The extra time of each batch; the server computes one at a time.
SLOW_S = 0.8
TIMEOUT_S = 0.3
SERVER = f"""
import sys, time
import modelServer
from embedshare.engine.runtimes.openvino import OpenVinoRuntime
run = OpenVinoRuntime.run
def slowly(self, sequences):
    time.sleep({SLOW_S})
    return run(self, sequences)
OpenVinoRuntime.run = slowly
sys.exit(modelServer.main())
"""
ONE = ["one text"]
SOME = [f"paragraph {number}" for number in range(40)]
MANY = [f"paragraph {number} of a long list" for number in range(1300)]
lengths = pytest.mark.parametrize("texts", [ONE, SOME, MANY], ids=["one text", "a batch", "a long list"])


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, server: ModelServer) -> Iterator[ModelServer]:
    """A slow model server; the default server has converted the model for it."""
    running = ModelServer(tmp_path_factory.mktemp("slow"), MAX_CONCURRENT_OPERATIONS="1")
    running.command = [sys.executable, "-c", SERVER]
    running.start()
    yield running
    running.kill()


@pytest.fixture
def caller(slow: ModelServer) -> Iterator[EmbeddingClient]:
    """A client that is connected to the idle slow server, with no fallback."""
    with slow.client(EMBEDDING_FALLBACK="none") as client:
        idle(client)
        yield client


def idle(client: EmbeddingClient) -> None:
    wait_for(lambda: client.get_active_operations_count() == 0, 60, "the end of what is being computed")


def check_out_of_time(client: EmbeddingClient, texts: list[str], deadline_s: float, **options: Any) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client.encode(texts, **options)
    assert deadline_s - 0.01 < time.monotonic() - began < deadline_s + 1


@lengths
@pytest.mark.parametrize("timeout", [0.001, TIMEOUT_S, 1.5])
def test_a_slow_server_costs_a_call_its_timeout(
    caller: EmbeddingClient, reference: Any, texts: list[str], timeout: float
) -> None:
    if texts is not MANY and timeout > SLOW_S:
        pytest.skip("it is answered in time")
    check_out_of_time(caller, texts, timeout, timeout=timeout)
    assert float(caller.encode("the next call") @ reference.encode("the next call")) > 0.9995


@lengths
def test_a_slow_server_costs_a_call_the_timeout_of_the_settings(slow: ModelServer, texts: list[str]) -> None:
    with slow.client(EMBEDDING_FALLBACK="none", EMBEDDING_TIMEOUT_S=str(TIMEOUT_S)) as client:
        check_out_of_time(client, texts, TIMEOUT_S)


@lengths
def test_a_server_that_hangs_before_it_is_met_costs_a_call_its_timeout(
    slow: ModelServer, texts: list[str]
) -> None:
    if not hasattr(signal, "SIGSTOP"):
        pytest.skip("this system cannot stop a process")
    assert slow.process is not None
    slow.process.send_signal(signal.SIGSTOP)
    try:
        with slow.client(EMBEDDING_FALLBACK="none", EMBEDDING_TIMEOUT_S="2.5") as client:
            check_out_of_time(client, texts, TIMEOUT_S, timeout=TIMEOUT_S)
    finally:
        slow.process.send_signal(signal.SIGCONT)


def test_a_call_with_time_enough_is_answered(caller: EmbeddingClient, reference: Any) -> None:
    rows = caller.encode(SOME, timeout=20)
    assert (rows * reference.encode(SOME)).sum(1).min() > 0.9995


def test_what_is_left_of_a_call_is_not_computed_after_its_deadline(caller: EmbeddingClient) -> None:
    before = caller.stats()
    check_out_of_time(caller, MANY[:500], 1.5, timeout=1.5)
    idle(caller)
    after = caller.stats()
    computed = after["sequences"] - before["sequences"]
    dropped = after["expired"] + after["abandoned"] - before["expired"] - before["abandoned"]
    print(f"\n{computed} of 500 texts were computed before the deadline")
    assert dropped == 1
    assert after["batches"] - before["batches"] <= 1.5 / SLOW_S + 2
    assert computed < 400


def test_twenty_callers_whose_time_is_over_do_not_delay_another(
    slow: ModelServer, caller: EmbeddingClient, reference: Any
) -> None:
    texts = [f"caller {number} " + "word " * 300 for number in range(20)]
    before = caller.stats()
    clients = [slow.client(EMBEDDING_FALLBACK="none") for _ in texts]
    with ThreadPoolExecutor(21) as threads:
        first = threads.submit(caller.encode, "the one that is being computed")
        wait_for(lambda: caller.get_active_operations_count() > 0, what="the first call")
        late = [
            threads.submit(check_out_of_time, client, [text], TIMEOUT_S, timeout=TIMEOUT_S)
            for client, text in zip(clients, texts, strict=True)
        ]
        for future in late:
            future.result()
        began = time.monotonic()
        row = caller.encode("a fresh call")
        took_s = time.monotonic() - began
        first.result()
    for client in clients:
        client.close()
    after = caller.stats()
    dropped = after["expired"] + after["abandoned"] - before["expired"] - before["abandoned"]
    print(f"\n{dropped} calls dropped; a fresh one behind them took {took_s:.2f} s")
    assert float(row @ reference.encode("a fresh call")) > 0.9995
    assert dropped == 20
    assert after["sequences"] - before["sequences"] == 2
    assert took_s < 2 * SLOW_S + 1
