"""The server's cache of vectors: `python -m benchmarks.cache`.

Writes benchmarks/cache.json and the table of docs/operations.md. Two servers that differ in
EMBEDDING_VECTOR_CACHE_BYTES alone answer the same load by turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, paths, servers

RESULTS = paths.HERE / "cache.json"
PAGE = paths.DOCS / "operations.md"
BEGIN, END = "<!-- cache -->", "<!-- /cache -->"
PROCESSES, THREADS, WINDOW_S, ROUNDS = 4, 4, 6.0, 3
TEXTS, PARAGRAPHS = 100_000, 2000
#: The default of EMBEDDING_VECTOR_CACHE_BYTES, which holds four in ten of the texts; draws that warm it
#: to the state in which its own evictions leave it.
CACHE_BYTES, WARMING_DRAWS = 64 << 20, 300_000

#: Calls with texts that are drawn by Zipf's law; prints the calls in the time and their milliseconds.
LOAD = """
import bisect, itertools, json, random, sys, threading, time
from embeddingClient import EmbeddingClient
threads, seconds, texts, seed = json.loads(sys.argv[1])
client = EmbeddingClient()
client.encode("a first text")
total = list(itertools.accumulate(1 / rank for rank in range(1, texts + 1)))
print("ready", flush=True)
sys.stdin.readline()
times, end = [], time.monotonic() + seconds
def run(number):
    rng = random.Random(number)
    while time.monotonic() < end:
        rank = bisect.bisect(total, rng.random() * total[-1])
        began = time.monotonic()
        client.encode(f"what does question {rank} ask of the model?")
        times.append((time.monotonic() - began) * 1e3)
all_threads = [threading.Thread(target=run, args=(seed * 100 + number,)) for number in range(threads)]
[each.start() for each in all_threads]
[each.join() for each in all_threads]
print(json.dumps(times))
"""
#: Warms the cache with texts drawn by Zipf's law.
WARMING = """
import bisect, itertools, json, random, sys
from embeddingClient import EmbeddingClient
draws, texts = json.loads(sys.argv[1])
client, rng = EmbeddingClient(), random.Random(7)
total = list(itertools.accumulate(1 / rank for rank in range(1, texts + 1)))
for _ in range(draws // 1000):
    ranks = {bisect.bisect(total, rng.random() * total[-1]) for _ in range(1000)}
    client.encode([f"what does question {rank} ask of the model?" for rank in ranks])
print(json.dumps({"cache": client.stats()["cache"]}))
"""
#: Times one text, an empty call, and bulk calls of its own.
SINGLE = """
import json, sys, time
from embeddingClient import EmbeddingClient
paragraphs, salt = json.loads(sys.argv[1])
client = EmbeddingClient()
def timed(call, times):
    found = []
    for _ in range(times):
        began = time.monotonic()
        call()
        found.append((time.monotonic() - began) * 1e3)
    return sorted(found)[len(found) // 2]
words = "of a model and its vectors which workers of one machine share in a batch ".split()
def paragraph(number):
    return " ".join(words[(number * 7 + at * 3) % len(words)] for at in range(28)) + f" {salt} {number}"
bulk = [paragraph(number) for number in range(paragraphs)]
began = time.monotonic()
client.encode(bulk)
first = time.monotonic() - began
print(json.dumps({
    "one_ms": timed(lambda: client.encode("what does question 1 ask of the model?"), 1500),
    "empty_ms": timed(client.get_active_operations_count, 1500),
    "bulk_new_s": first, "bulk_again_s": timed(lambda: client.encode(bulk), 3) / 1e3,
    "cache": client.stats()["cache"],
}))
"""


def main() -> None:
    paths.import_from_src()
    with tempfile.TemporaryDirectory(prefix="embedshare-cache-") as name:
        results = {"machine": machine.describe(), **measure(Path(name))}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = _table(results)
    Console().print("\n".join(lines))
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text("\n".join([before + BEGIN, *lines, END]) + after, encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """Both servers' figures of each round, with and without the cache."""
    running = {kind: _Server(folder / kind, size) for kind, size in (("with", CACHE_BYTES), ("without", 0))}
    found: dict[str, Any] = {kind: {"single": [], "calls_per_s": []} for kind in running}
    try:
        running["with"].run(WARMING, json.dumps([WARMING_DRAWS, TEXTS]))
        for number in range(ROUNDS):
            for kind, server in running.items():
                single = json.dumps([PARAGRAPHS, f"{kind} {number}"])
                found[kind]["single"].append(server.run(SINGLE, single))
            for kind, server in running.items():
                found[kind]["calls_per_s"].append(server.rate(number))
    finally:
        for server in running.values():
            server.process.terminate()
            server.process.wait(30)
    return found


class _Server:
    """A model server with this much memory for cached vectors."""

    def __init__(self, folder: Path, cache_bytes: int) -> None:
        folder.mkdir()
        self.settings = {
            "EMBEDDING_SERVER_PORT": str(servers.free_port()),
            "EMBEDDING_AUTHKEY_FILE": str(folder / "authkey"),
            "EMBEDDING_CACHE_DIR": str(folder.parent / "cache"),
            "EMBEDDING_VECTOR_CACHE_BYTES": str(cache_bytes),
            "EMBEDDING_FALLBACK": "none",
            "PYTHONPATH": str(paths.SRC),
        }
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            command = [sys.executable, str(paths.SRC / "modelServer.py")]
            self.process = subprocess.Popen(command, env=servers.environment(self.settings), stderr=log)
        while b"ready:" not in self.log.read_bytes():
            assert self.process.poll() is None, self.log.read_text()

    def start(self, code: str, argument: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", code, argument]
        env = servers.environment(self.settings)
        return subprocess.Popen(
            command, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )

    def run(self, code: str, argument: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.start(code, argument).communicate()[0])
        return told

    def rate(self, seed: int) -> float:
        """Calls a second of 16 callers."""
        given = [json.dumps([THREADS, WINDOW_S, TEXTS, seed * 10 + number]) for number in range(PROCESSES)]
        loads = [self.start(LOAD, one) for one in given]
        for load in loads:
            assert load.stdout is not None
            assert load.stdout.readline() == "ready\n"
        for load in loads:
            assert load.stdin is not None
            load.stdin.write("go\n")
            load.stdin.flush()
        calls = sum(len(json.loads(load.communicate()[0])) for load in loads)
        return round(calls / WINDOW_S, 1)


def _table(results: dict[str, Any]) -> list[str]:
    def middle(kind: str, name: str) -> float:
        return statistics.median(one[name] for one in results[kind]["single"])

    rates = {kind: statistics.median(results[kind]["calls_per_s"]) for kind in ("with", "without")}
    stats = results["with"]["single"][-1]["cache"]
    own = 4 * 384
    entry = stats["bytes"] / stats["entries"]
    told = results["machine"]
    rows = [
        (f"16 callers, queries drawn by Zipf's law from {TEXTS:,} texts, after {WARMING_DRAWS:,} draws",
         f"{rates['with']:,.0f} of {rates['without']:,.0f} calls/s",
         f"{rates['with'] / rates['without']:.1f}x", "5x"),
        ("p50 of a cached text, of a call that computes nothing",
         f"{middle('with', 'one_ms'):.3f} of {middle('with', 'empty_ms'):.3f} ms",
         f"{middle('with', 'one_ms') / middle('with', 'empty_ms'):.2f}x", "1.5x"),
        (f"{PARAGRAPHS:,} paragraphs that are all cached, of the time without a cache",
         f"{middle('with', 'bulk_again_s'):.3f} of {middle('without', 'bulk_again_s'):.2f} s",
         f"{middle('without', 'bulk_again_s') / middle('with', 'bulk_again_s'):.0f}x", "30x"),
        (f"{PARAGRAPHS:,} new paragraphs, of the time without a cache",
         f"{middle('with', 'bulk_new_s'):.2f} of {middle('without', 'bulk_new_s'):.2f} s",
         f"{middle('with', 'bulk_new_s') / middle('without', 'bulk_new_s'):.2f}x", "1.03x"),
        ("memory of an entry, of its vector's bytes", f"{entry:,.0f} of {own:,} bytes",
         f"{entry / own:.2f}x", "1.15x"),
    ]  # fmt: skip
    return [
        f"One run of `python -m benchmarks.cache`, {told['cpu']}, {told['cores']} cores, {ROUNDS} rounds by "
        "turns with a server whose cache is off:",
        "",
        "| figure | measured | ratio | target |",
        "|---|---|---|---|",
        *(f"| {what} | {measured} | **{ratio}** | {target} |" for what, measured, ratio, target in rows),
    ]


if __name__ == "__main__":
    main()
