"""One greedy worker with a connection in each of many threads, next to modest workers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes import ModelServer

#: Calls of `texts` texts without pause from `threads` connections; prints the outcomes of each connection.
CALLER = """
import json, sys, threading, time
from embeddingClient import EmbeddingClient

threads, texts, seconds = (int(number) for number in sys.argv[1:])
times = [[] for _ in range(threads)]
with EmbeddingClient() as client:
    started = threading.Barrier(threads + 1)

    def call(number):
        batch = [f"caller {number} asks for text {text} of its many" for text in range(texts)]
        client.encode(batch)
        started.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            client.encode(batch)
            times[number].append(time.monotonic() - began)

    running = [threading.Thread(target=call, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    started.wait()
    for thread in running:
        thread.join()
print(json.dumps(times))
"""


def start(server: ModelServer, *arguments: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CALLER, *map(str, arguments)],
        env=server.environment(EMBEDDING_FALLBACK="none"), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def times_of(caller: subprocess.Popen[str]) -> list[list[float]]:
    said, _ = caller.communicate(timeout=120)
    assert caller.returncode == 0
    parsed: list[list[float]] = json.loads(said)
    return parsed


@pytest.mark.long
def test_a_greedy_worker_does_not_starve_modest_ones(tmp_path: Path) -> None:
    """A modest call waits for about two batches, the one in flight and its own. It does not wait for the
    turns of the greedy worker's 32 connections."""
    server = ModelServer(tmp_path).start()
    with server.client(EMBEDDING_FALLBACK="none") as observer:
        greedy = start(server, 32, 30, 12)
        time.sleep(4)  # until all of its connections call
        before = observer.stats()
        modest = [start(server, 1, 1, 5) for _ in range(2)]
        waits = [wait for caller in modest for wait in times_of(caller)[0]]
        after = observer.stats()
    greedy_times = times_of(greedy)
    batch_s = (after["compute_s"] - before["compute_s"]) / (after["batches"] - before["batches"])
    counts = [len(each) for each in greedy_times]
    greedy_p50 = float(np.median([wait for each in greedy_times for wait in each]))
    modest_p50 = float(np.median(waits))
    print(
        f"\na batch {batch_s * 1e3:.0f} ms; p50 of a modest call {modest_p50 * 1e3:.0f} ms, of a greedy one "
        f"{greedy_p50 * 1e3:.0f} ms; calls of the greedy one's connections {min(counts)} to {max(counts)}"
    )
    assert modest_p50 < 5 * batch_s
    assert modest_p50 < greedy_p50 / 2
    assert max(counts) <= 2 * min(counts) + 2
    assert server.stop() == 0
