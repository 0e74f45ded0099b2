"""Vector indexes: `python -m benchmarks.indexes [--vectors FILE] [--count 100000]`.

Writes benchmarks/indexes.json and docs/benchmarks-indexes.md: the cost and saving of a shared index. Measures
build time, a query's milliseconds through the client against FAISS in the process, recall, and memory: 8
workers that share one index against 8 that each hold it. The vectors are of docstrings' paragraphs of every
installed package; `--vectors` keeps them for the next run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from benchmarks import corpus, indexes_report, machine, paths, servers
from benchmarks.indexes_report import ENCODE, EXACT, GRAPH, SHARED

QUERIES = 500
WORKERS = 8
AT = 10
#: The smallest efSearch of the graph in this process with our recall.
EFFORTS = (16, 32, 48, 64, 96, 128, 192, 256, 512)
#: The efConstruction with which `vectors.approximate` builds its graph.
EFFORT_OF_BUILD = 80
RESULTS = paths.HERE / "indexes.json"
PAGE = paths.DOCS / "benchmarks-indexes.md"

#: A worker prints `ready` after a search, and stays until its input ends.
WORKER = """
import sys
import numpy as np
kind, path, query = sys.argv[1:]
from embeddingClient import get_embedding_model
model = get_embedding_model()
if kind == "shared":
    index, _, metadata = model.load_vector_index(path)
    model.search_index(query, index, metadata, 10)
else:
    import faiss
    index = faiss.read_index(path)
    index.search(model.encode([query]), 10)
print("ready", flush=True)
sys.stdin.read()
"""


def main() -> None:
    given = _parser().parse_args()
    paths.import_from_src()
    described = machine.describe()
    with tempfile.TemporaryDirectory(prefix="embedshare-indexes-") as name:
        folder = Path(name)
        server = servers.model_server(folder)
        server.start()
        server.stop()
        server.start()  # converts the model now: no torch in the measurement
        try:
            figures = measure(server, folder, given.count, given.vectors)
        finally:
            server.stop()
    results = {"machine": described, **figures}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    indexes_report.write(results, PAGE, PAGE.with_name("benchmarks"), Console())


def measure(server: servers.Server, folder: Path, count: int, kept: Path | None) -> dict[str, Any]:
    """Return the figures; each name ends with its unit."""
    import faiss

    from embeddingClient import EmbeddingClient
    from embedshare.settings import Settings
    from embedshare.vectors import kinds
    from embedshare.vectors.client.handle import VectorIndex

    caller: Any = server.caller
    environment = {"EMBEDDING_SERVER_PORT": str(caller.port), "EMBEDDING_AUTHKEY_FILE": caller.key_file}
    settings = Settings.load({**environment, "EMBEDDING_FALLBACK": "none"}, dotenv=folder / "no.env")
    with EmbeddingClient(settings=settings) as client:
        asked = corpus.load().queries[:QUERIES]
        rows = _vectors(client, count, kept)
        queries = np.stack([client.encode(text) for text in asked])  # the runtime meets these lengths
        before_mb = _server_mb(server)
        metadata = [{"id": number, "url": "", "content": ""} for number in range(len(rows))]
        identity = client.describe().identity
        index = VectorIndex(client, rows, identity, metadata, metric="l2", kind="auto")
        began = time.perf_counter()
        index.send()
        sent_s = time.perf_counter() - began
        while not index.describe()["built"]:
            time.sleep(0.1)
        built_s = time.perf_counter() - began
        described = index.describe()
        after_mb = _server_mb(server)

        exact = faiss.IndexFlatL2(rows.shape[1])
        exact.add(rows)
        graph = faiss.IndexHNSWFlat(rows.shape[1], kinds.LINKS)
        graph.hnsw.efConstruction = EFFORT_OF_BUILD
        began = time.perf_counter()
        graph.add(rows)
        own_built_s = time.perf_counter() - began
        truth = exact.search(queries, AT)[1]
        recall = _recall([index.search(text, AT)[0] for text in asked], truth)
        for effort in EFFORTS:
            graph.hnsw.efSearch = effort
            own_recall = _recall(graph.search(queries, AT)[1].tolist(), truth)
            if own_recall >= recall:
                break

        ways: dict[str, Callable[[str], object]] = {
            ENCODE: client.encode,
            SHARED: lambda text: client.search_index(text, index, metadata, AT),
            GRAPH: lambda text: graph.search(client.encode(text)[None], AT),
            EXACT: lambda text: exact.search(client.encode(text)[None], AT),
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        for turn, text in enumerate(asked):  # in turn: the machine's other work affects all of them
            names = [ENCODE, SHARED, GRAPH]
            for name in names[turn % 3 :] + names[: turn % 3]:
                took[name].append(_milliseconds(ways[name], text))
        for text in asked:  # separate: its threads spin for a while, and would take the others' processor
            took[EXACT].append(_milliseconds(ways[EXACT], text))
        index.save(folder / "shared")
        faiss.write_index(graph, str(folder / "own"))
        memory = {kind: _workers_mb(kind, folder / kind, asked[0], environment) for kind in ("shared", "own")}
        return {
            "vectors": list(rows.shape),
            "queries": len(asked),
            "workers": WORKERS,
            "kind": described["kind"],
            "own_effort": graph.hnsw.efSearch,
            "sent_s": sent_s,
            "built_s": built_s,
            "own_built_s": own_built_s,
            "recall_at_10": {SHARED: recall, GRAPH: own_recall, EXACT: 1.0},
            "recall_at_10_on_its_own_vectors": described["recall"],
            "p50_ms": {name: statistics.median(times) for name, times in took.items()},
            "index_mb": described["bytes"] / 1e6,
            "server_mb": {"before": before_mb, "after": after_mb},
            "workers_mb": memory,
        }


def _recall(found: Sequence[Sequence[int]], truth: np.ndarray) -> float:
    return statistics.mean(len(set(a) & set(b)) / AT for a, b in zip(found, truth.tolist(), strict=True))


def _milliseconds(way: Callable[[str], object], text: str) -> float:
    began = time.perf_counter()
    way(text)
    return (time.perf_counter() - began) * 1e3


def _texts(count: int) -> list[str]:
    """Return paragraphs of the standard library and all installed packages, in the same order each time."""
    found: dict[str, None] = {}
    folders = {sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]}
    sources = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    random.Random(20).shuffle(sources)
    for path in sources:
        found.update(dict.fromkeys(corpus.paragraphs_of(path)))
        if len(found) >= count:
            break
    texts = list(found)
    random.Random(21).shuffle(texts)
    endless = (f"{text} {turn}" if turn else text for turn in itertools.count() for text in texts)
    return list(itertools.islice(endless, count))


def _vectors(client: Any, count: int, kept: Path | None) -> np.ndarray:
    if kept is not None and kept.is_file():
        rows: np.ndarray = np.load(kept, allow_pickle=False)
        if len(rows) == count:
            return rows
    print(f"embedding {count:,} paragraphs", file=sys.stderr)
    rows = client.encode(_texts(count), show_progress_bar=sys.stderr.isatty())
    if kept is not None:
        np.save(kept, rows)
    return rows


def _server_mb(server: servers.Server) -> float:
    return sum(_proportional(process) for process in server.processes()) / 1e6


def _workers_mb(kind: str, path: Path, query: str, environment: dict[str, str]) -> float:
    """Return the memory of all workers together; shared pages count once."""
    given = servers.environment({**environment, "PYTHONPATH": str(paths.SRC), "EMBEDDING_FALLBACK": "none"})
    command = [sys.executable, "-c", WORKER, kind, str(path), query]
    workers = [
        subprocess.Popen(command, env=given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=path.parent)
        for _ in range(WORKERS)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n", f"a {kind} worker failed"
        return sum(_proportional(psutil.Process(worker.pid)) for worker in workers) / 1e6
    finally:
        for worker in workers:
            worker.communicate()


def _proportional(process: psutil.Process) -> int:
    """Return a process's memory with its share of pages shared by n processes, if the system reports it."""
    full = process.memory_full_info()
    return int(getattr(full, "pss", full.uss if os.name == "nt" else full.rss))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.indexes", description=__doc__)
    parser.add_argument("--vectors", type=Path, metavar="FILE", help="keep the vectors here (.npy)")
    parser.add_argument("--count", type=int, default=100_000, help="documents in the index")
    return parser


if __name__ == "__main__":
    main()
