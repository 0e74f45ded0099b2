"""Many calls of mixed sizes for a long time: correct vectors, and no growth.

The test takes twenty seconds. The long form takes a quarter of an hour on two cores:
EMBEDSHARE_LONG=1 EMBEDSHARE_SOAK_CALLS=300000 python -m pytest -n 0 -s tests/e2e/test_soak.py
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from tqdm import tqdm

from tests.processes import ModelServer

#: The total number of calls; with 0 the soak lasts SOAK_S.
CALLS = int(os.environ.get("EMBEDSHARE_SOAK_CALLS", "0"))
SOAK_S = 20.0
#: Workers, threads in each, and the pause in seconds after each call: the short form shares its machine.
WORKERS, THREADS, PAUSE_S = (8, 2, 0.0) if CALLS else (2, 2, 0.01)
EVERY_S = 1.0

CALLER = """
import json, random, sys, threading, time
import numpy as np
from embeddingClient import EmbeddingClient

texts, expected, first = json.load(open(sys.argv[1])), np.load(sys.argv[2]), int(sys.argv[3])
lock, counts = threading.Lock(), {"calls": 0, "wrong": 0}
stop = threading.Event()

def call(client, seed):
    dice = random.Random(seed)
    while not stop.is_set():
        size = dice.choices([1, dice.randint(2, 8), dice.randint(9, 60)], [0.93, 0.06, 0.01])[0]
        picked = [dice.randrange(len(texts)) for _ in range(size)]
        rows = client.encode([texts[number] for number in picked])
        wrong = int((rows * expected[picked]).sum(1).min() < 0.9995)
        with lock:
            counts["calls"] += 1
            counts["wrong"] += wrong
        time.sleep(float(sys.argv[5]))

with EmbeddingClient() as client:
    threads = [threading.Thread(target=call, args=(client, 100 * first + n)) for n in range(int(sys.argv[4]))]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        print(json.dumps(counts), flush=True)
    stop.set()
    for thread in threads:
        thread.join()
"""


class Shape(NamedTuple):
    """The resources that a process holds."""

    memory_mb: float
    threads: int
    files: int


def shape_of(pid: int) -> Shape:
    process = psutil.Process(pid)
    files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return Shape(process.memory_info().rss / 2**20, process.num_threads(), files)


class Worker:
    """A process that calls without pause from THREADS threads."""

    def __init__(self, number: int, texts: Path, expected: Path, server: ModelServer) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CALLER, *map(str, (texts, expected, number, THREADS, PAUSE_S))],
            env=server.environment(EMBEDDING_FALLBACK="none", EMBEDDING_LOG_LEVEL="error"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def counts(self) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        counts: dict[str, int] = json.loads(self.process.stdout.readline())
        return counts


def slope(calls: list[int], values: list[float]) -> float:
    """Return the growth per 100,000 calls, over the second half."""
    half = len(calls) // 2
    return float(np.polyfit(np.array(calls[half:]) / 1e5, values[half:], 1)[0])


@pytest.mark.timeout(max(300, CALLS // 50))
@pytest.mark.long
def test_nothing_grows_over_many_calls_of_mixed_sizes(tmp_path: Path, reference: Any) -> None:
    dice = random.Random(7)
    lengths = [dice.choice([1, 2, 3, 5, 8, 13, 40]) for _ in range(400)] + [120, 240, 1000]
    words = ["model", "worker", "vector", "query", "batch", "token", "server", "process"]
    texts = [" ".join(dice.choices(words, k=length)) + f" {n}" for n, length in enumerate(lengths)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    np.save(tmp_path / "expected.npy", reference.encode(texts))
    server = ModelServer(tmp_path).start()
    assert server.stop() == 0
    server.start()  # already converted: this start loads no torch, like a long-running server
    assert server.process is not None
    files = tmp_path / "texts.json", tmp_path / "expected.npy"
    workers = [Worker(number, *files, server) for number in range(WORKERS)]
    began, calls, at_server, at_worker = time.monotonic(), [0], [], []
    bar = tqdm(total=CALLS or int(SOAK_S), unit="call" if CALLS else "s")
    while (calls[-1] < CALLS) if CALLS else (time.monotonic() - began < SOAK_S):
        time.sleep(EVERY_S)
        counts = [worker.counts() for worker in workers]
        at_server.append(shape_of(server.process.pid))
        at_worker.append(shape_of(workers[0].process.pid))
        calls.append(sum(each["calls"] for each in counts))
        bar.update((calls[-1] if CALLS else int(time.monotonic() - began)) - bar.n)
    bar.close()
    wrong = sum(worker.counts()["wrong"] for worker in workers)
    for worker in workers:
        worker.process.communicate(timeout=60)
        assert worker.process.returncode == 0
    grows = {
        who: slope(calls[1:], [shape.memory_mb for shape in shapes])
        for who, shapes in (("server", at_server), ("worker", at_worker))
    }
    middle = len(at_server) // 2
    for who, shapes in (("server", at_server), ("worker", at_worker)):
        ends = [tuple(round(value) for value in shape) for shape in (shapes[0], shapes[middle], shapes[-1])]
        print(f"\n{who}: MB, threads, files at the start, in the middle, at the end: {ends}")
        print(f"{who}: {grows[who]:+.1f} MB for 100,000 calls, over the second half")
    print(f"\n{calls[-1]:,} calls in {time.monotonic() - began:.0f} s, {wrong} wrong")
    assert wrong == 0
    assert calls[-1] > 1000
    # The server's runtime keeps buffers for each shape, and a short run meets new shapes to its end.
    for shapes, room_mb in ((at_server, 40 if CALLS >= 100_000 else 200), (at_worker, 5)):
        assert shapes[-1].threads <= max(shape.threads for shape in shapes[:middle]) + 2
        assert shapes[-1].files <= max(shape.files for shape in shapes[:middle]) + 2
        assert shapes[-1].memory_mb - shapes[middle].memory_mb < room_mb
    if CALLS >= 100_000:
        assert grows["server"] < 10
        assert grows["worker"] < 2
    assert server.stop() == 0
