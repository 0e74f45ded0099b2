"""The runtime raises, runs out of memory, ends its thread or hangs: in a real server, with real calls."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import DeadlineExceeded, EmbedshareError, EngineFailed, OutOfMemory, ServerUnavailable
from tests.processes import ModelServer, wait_for

#: The model server with a runtime that reads its faults from a file, one a line. Texts of over a hundred
#: tokens are "poisoned".
PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np
import modelServer
from embedshare.engine.runtimes.openvino import OpenVinoRuntime
from embedshare.errors import OutOfMemory

order, run = Path(sys.argv[1]), OpenVinoRuntime.run

def faulty(self, sequences):
    fault = order.read_text()
    poisoned = max(map(len, sequences)) > 100
    if fault == "raise" or (fault == "poison" and poisoned):
        raise RuntimeError("the device is lost")
    tight = fault == "tight" and len(sequences) > 2
    if fault == "full" or tight or (fault == "poison memory" and poisoned):
        raise OutOfMemory(f"no room for {len(sequences)} sequences")
    if fault == "end the thread":
        order.write_text("")
        raise SystemExit
    while order.read_text() == "hold":
        time.sleep(0.05)
    return run(self, sequences)

OpenVinoRuntime.run = faulty
sys.exit(modelServer.main())
"""
TEXTS = [f"text {number} of those that share a batch" for number in range(40)]
POISON = "poison " * 150


class Faulty:
    """A server whose runtime fails on request."""

    def __init__(self, folder: Path) -> None:
        self.order = folder / "order"
        self.order.write_text("")
        self.server = ModelServer(folder, EMBEDDING_STUCK_S="4")
        self.server.command = [sys.executable, "-c", PROGRAM, str(self.order)]
        self.server.start()

    def tell(self, fault: str) -> None:
        self.order.write_text(fault)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    running = Faulty(tmp_path)
    yield running
    if not running.server.ended:
        running.tell("")
        assert running.server.stop() == 0


@pytest.fixture
def client(faulty: Faulty) -> Iterator[EmbeddingClient]:
    with faulty.server.client(EMBEDDING_FALLBACK="none") as made:
        made.encode("connect")
        yield made


def outcomes(client: EmbeddingClient, calls: list[str | list[str]]) -> list[Any]:
    """Make these calls at once; return the result or error of each."""

    def call(texts: str | list[str]) -> Any:
        try:
            return client.encode(texts, timeout=20.0)
        except EmbedshareError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))


@pytest.mark.parametrize(
    ("fault", "error"),
    [("poison", EngineFailed), pytest.param("poison memory", OutOfMemory, marks=pytest.mark.long)],
)
def test_only_the_call_that_cannot_be_computed_fails(
    faulty: Faulty, client: EmbeddingClient, reference: Any, fault: str, error: type[EmbedshareError]
) -> None:
    faulty.tell(fault)
    for _ in range(5):
        *right, poisoned = outcomes(client, [*TEXTS, POISON])
        assert isinstance(poisoned, error), poisoned
        assert (np.stack(right) * reference.encode(TEXTS)).sum(1).min() > 0.9995
    assert client.health()["status"] == "ok"


def test_a_runtime_short_of_memory_computes_smaller_batches(
    faulty: Faulty, client: EmbeddingClient, reference: Any
) -> None:
    faulty.tell("tight")
    assert (client.encode(TEXTS) * reference.encode(TEXTS)).sum(1).min() > 0.9995
    assert client.stats()["out_of_memory"] > 0


def test_the_end_of_a_thread_that_computes_costs_no_answer(
    faulty: Faulty, client: EmbeddingClient, reference: Any
) -> None:
    expected = reference.encode(TEXTS)
    for _ in range(10):
        faulty.tell("end the thread")
        vectors = outcomes(client, list(TEXTS))
        assert (np.stack(vectors) * expected).sum(1).min() > 0.9995


def test_failures_that_pass_are_told_by_health_and_recovered_from(
    faulty: Faulty, client: EmbeddingClient, reference: Any
) -> None:
    faulty.tell("raise")
    with pytest.raises(EngineFailed, match="the device is lost"):
        client.encode("text")
    wait_for(lambda: client.health()["status"] == "degraded", 5.0, "the bad health")
    assert "the device is lost" in client.health()["error"]
    faulty.tell("")
    wait_for(lambda: client.health()["status"] == "ok", 5.0, "the good health")
    assert float(client.encode("text") @ reference.encode("text")) > 0.9995
    assert not faulty.server.ended


@pytest.mark.parametrize(
    ("fault", "last_line"),
    [
        ("raise", "the runtime failed 5 embeddings in a row"),
        pytest.param("full", "no room for 1 sequences", marks=pytest.mark.long),
        ("hold", "EMBEDDING_STUCK_S is 4"),
    ],
)
def test_a_runtime_that_does_not_come_back_ends_the_server_with_its_reason(
    faulty: Faulty, client: EmbeddingClient, fault: str, last_line: str
) -> None:
    faulty.tell(fault)
    with pytest.raises(EmbedshareError):
        client.encode("text", timeout=0.5)
    began = time.monotonic()
    wait_for(lambda: client.health()["status"] == "degraded", 5.0, "the bad health")
    assert time.monotonic() - began < 5.0
    assert faulty.server.process is not None
    assert faulty.server.process.wait(30) == 1
    last = faulty.server.said().decode().splitlines()[-1]
    assert last_line in last
    assert "Exiting, to be restarted (" in last
    with pytest.raises((ServerUnavailable, DeadlineExceeded)):
        client.encode("text", timeout=1.0)
