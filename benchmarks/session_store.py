"""The store of sessions' chunks: `python -m benchmarks.session_store [--chunks 100000]`.

Prints figures as JSON: filling, exact searches in all of a session and with uploads under way, opening again,
memory. Vectors are random, of 384 dimensions; ten sessions share the shard equally, and one more has all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from embedshare.sessions.store.base import Point, VectorStore, open_embedded, point_id

DIMENSION = 384
SESSIONS = 10
#: Chunks of a document, and of one `put`.
DOCUMENT, PUT = 500, 100
QUERIES = 300
TEXT = "The quick brown fox jumps over the lazy dog, and then it rests in the shade of an old tree. " * 16
SCHEMA = {"year": "integer"}


def vectors(count: int, seed: int) -> np.ndarray:
    """Random float32 rows (count, DIMENSION)."""
    return np.random.default_rng(seed).standard_normal((count, DIMENSION), dtype=np.float32)


def upload(store: VectorStore, session: str, document: str, rows: np.ndarray, version: str = "1") -> None:
    """Put and publish a document."""
    chunks = [_chunk(session, document, version, number, row) for number, row in enumerate(rows)]
    for first in range(0, len(chunks), PUT):
        store.put(chunks[first : first + PUT])
    store.publish(session, document, version, len(rows))


def _chunk(session: str, document: str, version: str, number: int, row: np.ndarray) -> Point:
    start, year = number * len(TEXT), {"year": 2000 + number % 20}
    return Point(
        point_id(session, document, number), session, document, number, row, TEXT, start, start + len(TEXT),
        None, None, year, version,
    )  # fmt: skip


def milliseconds(search: Callable[[np.ndarray], object], queries: np.ndarray) -> dict[str, float]:
    """The p50 and p95 of searches, one after the other."""
    times = []
    for query in queries:
        began = time.perf_counter()
        search(query)
        times.append((time.perf_counter() - began) * 1e3)
    cuts = statistics.quantiles(times, n=20)
    return {"p50": round(cuts[9], 2), "p95": round(cuts[18], 2)}


def documents(chunks: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Session, name and vectors of each document."""
    for number in range(chunks // DOCUMENT):
        yield f"s{number % SESSIONS}", f"d{number}", vectors(DOCUMENT, number)


def fill(folder: Path, chunks: int) -> dict[str, Any]:
    """Fill a store, and search it: the figures of one process."""
    process = psutil.Process()
    before = process.memory_info().rss
    store = open_embedded(folder, "benchmark", DIMENSION, SCHEMA)
    spent = 0.0
    for session, document, rows in documents(chunks):
        began = time.perf_counter()
        upload(store, session, document, rows)
        spent += time.perf_counter() - began
    figures: dict[str, Any] = {"fill_s": round(spent, 2), "fill_chunks_per_s": round(chunks / spent)}
    figures["filled_mb"] = (process.memory_info().rss - before) >> 20
    figures |= searched(store)
    figures["close_s"] = _seconds(store.close)
    return figures


def searched(store: VectorStore) -> dict[str, Any]:
    """The milliseconds of searches in one of the ten sessions."""
    queries = vectors(QUERIES, 7_000_000)

    def search(query: np.ndarray) -> object:
        return store.search("s3", query, 10)

    figures = {
        "session_ms": milliseconds(search, queries),
        "filtered_ms": milliseconds(lambda query: store.search("s3", query, 10, {"year": 2005}), queries),
    }
    with uploading(store):
        figures["session_while_uploading_ms"] = milliseconds(search, queries)
    return figures


def whole(folder: Path, chunks: int) -> dict[str, Any]:
    """Search a store in which one session has all the chunks."""
    store = open_embedded(folder, "benchmark", DIMENSION, SCHEMA)
    for _, document, rows in documents(chunks):
        upload(store, "all", document, rows)
    queries = vectors(QUERIES, 7_000_000)
    figures = {"all_ms": milliseconds(lambda query: store.search("all", query, 10), queries)}
    store.close()
    return figures


def again(folder: Path, _: int) -> dict[str, Any]:
    """Open a filled store."""
    process = psutil.Process()
    before = process.memory_info().rss
    began = time.perf_counter()
    store = open_embedded(folder, "benchmark", DIMENSION, SCHEMA)
    opened = time.perf_counter() - began
    queries = vectors(QUERIES, 7_000_000)
    after = milliseconds(lambda query: store.search("s3", query, 10), queries)
    figures = {"open_s": round(opened, 2), "open_session_ms": after}
    figures["open_mb"] = (process.memory_info().rss - before) >> 20
    store.close()
    return figures


@contextmanager
def uploading(store: VectorStore) -> Iterator[None]:
    """Meanwhile another thread uploads and replaces a document of the session over and over."""
    ended, rows = threading.Event(), vectors(DOCUMENT, 9_000_000)

    def replace() -> None:
        for number in itertools.count():
            if ended.is_set():
                return
            upload(store, "s3", "replaced", rows, str(number))

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return round(time.perf_counter() - began, 2)


def measure(chunks: int) -> dict[str, Any]:
    """All figures, each part in a process of its own."""
    figures: dict[str, Any] = {"chunks": chunks, "dimension": DIMENSION, "sessions": SESSIONS}
    with tempfile.TemporaryDirectory() as place:
        for part, folder in (("fill", "ten"), ("again", "ten"), ("whole", "one")):
            command = [sys.executable, "-m", "benchmarks.session_store", "--chunks", str(chunks)]
            command += ["--part", part, "--folder", str(Path(place, folder))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures |= json.loads(done.stdout)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--part", choices=("fill", "again", "whole"), help="one part, in this process")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    parts = {"fill": fill, "again": again, "whole": whole}
    if options.part:
        print(json.dumps(parts[options.part](options.folder, options.chunks)))
    else:
        print(json.dumps(measure(options.chunks), indent=2))


if __name__ == "__main__":
    main()
