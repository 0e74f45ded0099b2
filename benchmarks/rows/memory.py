"""(a) Memory: one model server and N workers with the client, against N workers with a model each."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import Any

import psutil

from benchmarks import paths, servers
from benchmarks.bench import Bench
from benchmarks.callers import EmbedshareCaller
from benchmarks.figures import Bars, Section, Table

KEY = "memory"
TEXTS = 32
MIB = 1 << 20


def steps(bench: Bench) -> int:
    return 2 * len(bench.plan.workers) + 1


def measure(bench: Bench) -> dict[str, Any]:
    with bench.step("memory: the first start of all, which converts the model"):
        first_server_mb = _shared(bench, 1)["server_mb"]
    rows = []
    for workers in bench.plan.workers:
        with bench.step(f"memory: {workers} workers with the client"):
            ours = _shared(bench, workers)
        with bench.step(f"memory: {workers} workers with a model each"):
            theirs = _total(bench, "local", workers, None, [])
        rows.append({"workers": workers, "shared": ours, "local": theirs})
    return {
        "unit": "PSS" if psutil.LINUX else "USS",
        "texts": TEXTS,
        "first_server_mb": first_server_mb,
        "rows": rows,
    }


def section(data: dict[str, Any]) -> Section:
    table = Table(
        [
            "workers",
            "1 model server + workers, MB",
            "a model in each worker, MB",
            "less by",
            "one worker, MB",
        ],
        [
            [
                str(row["workers"]),
                f"{row['shared']['total_mb']:,.0f} (server {row['shared']['server_mb']:,.0f})",
                f"{row['local']['total_mb']:,.0f}",
                f"{row['local']['total_mb'] / row['shared']['total_mb']:.2f}x",
                f"{row['shared']['worker_mb']:,.0f} against {row['local']['worker_mb']:,.0f}",
            ]
            for row in data["rows"]
        ],
        emphasised=("less by",),
    )
    most = data["rows"][-1]
    saved = most["local"]["total_mb"] / most["shared"]["total_mb"]
    return Section(
        "Memory",
        f"{data['unit']} (psutil `memory_full_info`), summed over all processes, after each worker has "
        f"embedded the same {data['texts']} paragraphs. "
        + (
            "PSS counts a shared page once, split among its processes, so the sum is the machine's cost; it "
            "is summed while nothing else of the benchmark runs."
            if data["unit"] == "PSS"
            else "USS leaves out shared pages."
        )
        + " The server has run on this machine before; at its very first start, which converts the model, "
        f"it holds {data['first_server_mb']:,.0f} MB.",
        [table],
        [(f"Memory of {most['workers']} workers, against a model in each", f"{saved:.2f}x less")],
        [
            Bars(
                "memory",
                f"Memory ({data['unit']}), MB",
                "MB",
                [f"{row['workers']} worker" + "s" * (row["workers"] > 1) for row in data["rows"]],
                {
                    "embedshare": [row["shared"]["total_mb"] for row in data["rows"]],
                    "a model in each worker": [row["local"]["total_mb"] for row in data["rows"]],
                },
            )
        ],
    )


def _shared(bench: Bench, workers: int) -> dict[str, float]:
    """Start a separate model server, used by these workers only."""
    server = servers.model_server(bench.folder)
    try:
        server.start()
        caller = server.caller
        assert isinstance(caller, EmbedshareCaller)
        return _total(bench, "client", workers, caller, server.processes())
    finally:
        server.stop()


def _total(
    bench: Bench, kind: str, workers: int, model: EmbedshareCaller | None, serving: list[psutil.Process]
) -> dict[str, float]:
    texts = bench.corpus.paragraphs[:TEXTS]
    given = {"PYTHONPATH": str(paths.SRC)}
    if model is not None:
        given |= {"EMBEDDING_SERVER_PORT": str(model.port), "EMBEDDING_AUTHKEY_FILE": model.key_file}
    with contextlib.ExitStack() as stack:
        running = []
        log = stack.enter_context((bench.folder / "memory-workers.log").open("ab"))
        for _ in range(workers):
            worker = subprocess.Popen(
                [sys.executable, str(paths.HERE / "memory_worker.py"), kind, str(bench.model)],
                env=servers.environment(given), cwd=bench.folder, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
            stack.callback(_end, worker)
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(texts) + "\n")
            worker.stdin.flush()
            running.append(worker)
        for worker in running:
            assert worker.stdout is not None
            if worker.stdout.readline().strip() != "ready":
                raise RuntimeError((bench.folder / "memory-workers.log").read_text()[-3000:])
        server_mb = sum(map(_mb, serving))
        each = [
            sum(map(_mb, [process, *process.children(recursive=True)]))
            for process in (psutil.Process(worker.pid) for worker in running)
        ]
    return {
        "total_mb": server_mb + sum(each),
        "server_mb": server_mb,
        "worker_mb": sum(each) / len(each),
        "processes": len(serving) + len(each),
    }


def _mb(process: psutil.Process) -> float:
    info = process.memory_full_info()
    return float(info.pss if psutil.LINUX else info.uss) / MIB


def _end(worker: subprocess.Popen[str]) -> None:
    """End the worker by closing its standard input."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.close()
    try:
        worker.wait(20)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    worker.stdout.close()
