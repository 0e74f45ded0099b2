"""Extreme conditions: continuous kills, callers that die, more load than the server can serve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import DeadlineExceeded, Overloaded, ServerUnavailable
from embedshare.ipc import codec
from embedshare.ipc.transport import Client
from tests.processes import ModelServer, Services, free_port, wait_for

#: The storms last this many seconds; the long form is
#: EMBEDSHARE_LONG=1 EMBEDSHARE_STORM_S=60 python -m pytest -n 0 -s tests/e2e/test_storms.py
STORM_S = float(os.environ.get("EMBEDSHARE_STORM_S", "6"))
TEXTS = [f"call {number} of a storm, " + "word " * (number % 40) for number in range(64)]

CALLER = """
import collections, json, sys, time
import numpy as np
from embeddingClient import EmbeddingClient
from embedshare.errors import EmbedshareError

texts, seconds, timeout, first = json.loads(sys.stdin.readline())
expected = np.load(sys.argv[1])
counts = collections.Counter()
with EmbeddingClient(retry_delay=0.1) as client:
    while client.health()["status"] != "ok":
        time.sleep(0.1)
    end, number = time.monotonic() + seconds, first
    while time.monotonic() < end:
        number = (number + 7) % len(texts)
        began = time.monotonic()
        try:
            cosine = float(client.encode(texts[number], timeout=timeout) @ expected[number])
            counts["answered" if cosine > 0.9995 else "wrong"] += 1
        except EmbedshareError as error:
            counts[type(error).__name__] += 1
        if time.monotonic() - began > timeout + 1:
            counts["late"] += 1
print(json.dumps(counts))
"""


class Storm:
    """Worker processes, sixteen in the long form, that call without pause for STORM_S; they count answers."""

    def __init__(self, server: ModelServer, expected: Path, timeout_s: float, **settings: str) -> None:
        self.callers = [
            subprocess.Popen(
                [sys.executable, "-c", CALLER, str(expected)],
                env=server.environment(EMBEDDING_LOG_LEVEL="error", **settings),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            for _ in range(16 if STORM_S >= 60 else 4)
        ]  # fmt: skip
        for number, caller in enumerate(self.callers):
            assert caller.stdin is not None
            caller.stdin.write(json.dumps([TEXTS, STORM_S, timeout_s, number]) + "\n")
            caller.stdin.flush()

    def counts(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for caller in self.callers:
            said, _ = caller.communicate(timeout=STORM_S + 120)
            assert caller.returncode == 0
            total.update(json.loads(said))
        return total


@pytest.fixture(scope="module")
def expected(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("storm") / "expected.npy"
    np.save(path, reference.encode(TEXTS))
    return path


def counts_of_kills(folder: Path, expected: Path, timeout_s: float, **settings: str) -> Counter[str]:
    """Return the outcomes of calls to a server that is killed soon after each time it is ready.

    Its supervisor restarts it.
    """
    server = ModelServer(folder)  # gives the callers their settings; the supervisor starts the server
    services = Services(folder, "--workers", "1", "--port", str(free_port(in_a_row=2)), **server.given)
    services.wait_until_running()
    storm, kills = Storm(server, expected, timeout_s, **settings), 0
    while any(caller.poll() is None for caller in storm.callers):
        time.sleep(2)
        if services.output.count("Ready: model-server") > kills:
            for process in services.children("modelServer.py"):
                process.kill()
                kills += 1
    counts = storm.counts()
    services.process.send_signal(signal.SIGTERM)
    assert services.process.wait(60) == 0, services.output
    print(f"\n{kills} kills: {dict(counts)}")
    assert kills >= 2
    return counts


@pytest.mark.long
def test_killed_without_end_every_call_with_time_left_is_answered_rightly(
    tmp_path: Path, expected: Path
) -> None:
    counts = counts_of_kills(tmp_path, expected, 20.0, EMBEDDING_FALLBACK="none")
    assert set(counts) == {"answered"}
    assert counts["answered"] > 8


@pytest.mark.long
def test_killed_without_end_with_fallback_every_call_is_answered(tmp_path: Path, expected: Path) -> None:
    counts = counts_of_kills(tmp_path, expected, 60.0, EMBEDDING_FALLBACK="local")
    assert set(counts) == {"answered"}


def test_calls_with_little_time_end_in_time_with_the_right_error(tmp_path: Path, expected: Path) -> None:
    counts = counts_of_kills(tmp_path, expected, 0.5, EMBEDDING_FALLBACK="none")
    assert set(counts) <= {"answered", ServerUnavailable.__name__, DeadlineExceeded.__name__}
    assert counts["answered"] > 0


def shape_of(server: ModelServer) -> tuple[int, int, int]:
    """The server's threads, open files and resident MB."""
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return process.num_threads(), files, process.memory_info().rss >> 20


@pytest.mark.long
def test_two_hundred_callers_that_die_in_mid_call_leave_nothing(tmp_path: Path) -> None:
    server = ModelServer(tmp_path).start()
    key = (tmp_path / "authkey").read_bytes()
    texts = [f"paragraph {number} " + "word " * 20 for number in range(300)]

    def die(number: int) -> None:
        connection = Client(("127.0.0.1", server.port), key, time.monotonic() + 30)
        message = codec.encode(codec.Encode(number, 60.0, texts, "", False, None))
        connection.send_bytes(message if number % 2 else message[: len(message) // 2])
        time.sleep(0.01)
        connection.close()

    def nothing_is_left_of_them() -> bool:
        return shape_of(server)[0] <= threads_before

    with server.client(EMBEDDING_FALLBACK="none") as client, ThreadPoolExecutor(8) as threads:
        for number in range(20, 300, 40):
            client.encode(texts[:number])  # the runtime keeps memory for known shapes
        threads_before = shape_of(server)[0] + 2
        list(threads.map(die, range(200)))
        wait_for(nothing_is_left_of_them, 60, "the end of the dead callers' threads")
        before = shape_of(server)
        list(threads.map(die, range(200)))
        wait_for(nothing_is_left_of_them, 60, "the end of the dead callers' threads")
        after, stats = shape_of(server), client.stats()
    print(
        f"\nthreads, files, MB: {before} before, {after} after; {stats['failed_requests']} calls of the dead"
    )
    assert after[1] <= before[1] + 2
    assert after[2] - before[2] < 100  # each leaked caller would take 0.5 MB or more
    assert stats["failed_requests"] > 100
    assert server.stop() == 0


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[ModelServer]:
    """A server with room for few queued calls."""
    server = ModelServer(tmp_path, EMBEDDING_MAX_WAITING_TOKENS="3000").start()
    yield server
    assert server.stop() == 0


def p50_ms(client: EmbeddingClient) -> float:
    times = []
    for number in range(60):
        began = time.monotonic()
        client.encode(TEXTS[number])
        times.append(time.monotonic() - began)
    return float(np.median(times)) * 1e3


@pytest.mark.long
def test_two_hundred_connections_without_pause_are_served_or_told(narrow: ModelServer) -> None:
    counts: Counter[str] = Counter()
    lock, stop = threading.Lock(), time.monotonic() + STORM_S
    texts = TEXTS[:12]

    def call(client: EmbeddingClient) -> None:
        while time.monotonic() < stop:
            try:
                client.encode(texts, timeout=3.0)
                outcome = "answered"
            except (Overloaded, DeadlineExceeded) as error:
                outcome = type(error).__name__
            with lock:
                counts[outcome] += 1

    with narrow.client(EMBEDDING_FALLBACK="none") as client:
        before_ms, before = p50_ms(client), shape_of(narrow)
        callers = [threading.Thread(target=call, args=(client,)) for _ in range(200)]
        for caller in callers:
            caller.start()
        most_waiting = 0
        with narrow.client(EMBEDDING_FALLBACK="none") as observer:
            while time.monotonic() < stop:
                most_waiting = max(most_waiting, observer.stats()["waiting_tokens"])
                time.sleep(0.2)
        for caller in callers:
            caller.join(60)
        rejected, after_ms, after = client.stats()["rejected"], p50_ms(client), shape_of(narrow)
    print(
        f"\n{dict(counts)}, {rejected} refusals, at most {most_waiting} tokens waiting; p50 "
        f"{before_ms:.1f} ms before, {after_ms:.1f} after; threads, files, MB {before} before, {after} after"
    )
    assert counts["answered"] > 100
    assert rejected > 0
    assert most_waiting <= 3000
    assert after[2] - before[2] < 150
    assert after_ms < 5 * before_ms + 20
