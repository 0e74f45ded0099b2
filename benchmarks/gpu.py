"""On one GPU: our server against SentenceTransformer in process, with its defaults and tuned.

`python -m benchmarks.gpu` writes benchmarks/gpu.json and docs/benchmarks-gpu.md. `--device cpu` runs the same
on a CPU, to test the program.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import corpus, gpu_load, gpu_report, machine, paths, servers
from benchmarks.callers import EmbedshareCaller
from benchmarks.figures import ratios
from benchmarks.gpu_load import Process, Way

OURS, DEFAULT, TUNED = gpu_report.OURS, gpu_report.DEFAULT, gpu_report.TUNED
#: Uncounted runs of each bulk set: our server sees a shape plainly, captures it, replays it.
WARM_UPS = 3
MEMORY_TEXTS = 32
RESULTS = paths.HERE / "gpu.json"
PAGE = paths.DOCS / "benchmarks-gpu.md"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of one run. A round measures each competitor once, by turns."""

    name: str
    rounds: int
    bulk: tuple[tuple[int, int], ...]
    """(tokens in a text, texts in one `encode`)"""
    query_window_s: float
    workers: tuple[int, ...] = (3, 8)


FULL = Plan("full", rounds=5, bulk=((16, 32_768), (128, 8192), (256, 4096)), query_window_s=5.0)
QUICK = Plan("quick", rounds=2, bulk=((16, 8192), (128, 2048), (256, 1024)), query_window_s=2.0)
#: A CPU takes about a hundred times as long.
CPU = Plan("quick", rounds=1, bulk=((16, 256), (128, 32), (256, 16)), query_window_s=1.0)


class Run:
    """The parts that the measurements share."""

    def __init__(self, plan: Plan, on_gpu: bool, model: Path, folder: Path, meter: Process) -> None:
        self.plan = plan
        self.on_gpu = on_gpu
        self.folder = folder
        self.meter = meter
        half = "float16" if on_gpu else "bfloat16"
        self.default = Way(model=str(model))
        self.tuned = Way(model=str(model), dtype=half, batch_size=256)
        self.text = corpus.load()
        self.step = contextlib.nullcontext  # replaced by the progress bar

    @contextlib.contextmanager
    def server(self) -> Iterator[servers.Server]:
        """Our model server with its default settings."""
        server = servers.model_server(self.folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()

    def memory_mb(self, process_ids: list[int]) -> float:
        """Memory in use on a GPU; on a CPU, the memory of these processes."""
        if self.on_gpu:
            return float(self.meter.call(gpu_load.gpu_memory_mb))
        import psutil

        return sum(psutil.Process(pid).memory_full_info().uss for pid in process_ids) / 2**20


def memory(run: Run) -> list[dict[str, Any]]:
    """Measure one server and N clients against N models. It runs first, while the device is unused."""
    texts = run.text.paragraphs[:MEMORY_TEXTS]
    with run.step("the very first start, which reads from the disk"), run.server():
        pass
    before_mb = run.memory_mb([])
    rows = []
    for workers in run.plan.workers:
        with run.step(f"memory: {workers} workers with a model each"):
            alone_mb = _memory_of(run, [run.default] * workers, texts, []) - before_mb
        with run.step(f"memory: {workers} workers with the client"), run.server() as server:
            way = Way(server=_caller(server))
            serving = [process.pid for process in server.processes()]
            shared_mb = _memory_of(run, [way] * workers, texts, serving) - before_mb
        rows.append({"workers": workers, "shared_mb": shared_mb, "alone_mb": alone_mb})
    return rows


def bulk(run: Run, processes: dict[str, Process], model: Path) -> list[dict[str, Any]]:
    rows = []
    for tokens, count in run.plan.bulk:
        with run.step(f"bulk of {tokens} tokens: warming up"):
            texts = run.meter.call(gpu_load.texts_of_length, str(model), tokens, count)
            for process in processes.values():
                for _ in range(WARM_UPS):
                    process.call(gpu_load.encode_s, texts)
        rates: dict[str, list[float]] = {name: [] for name in processes}
        for number in range(run.plan.rounds):
            for name in list(processes)[:: -1 if number % 2 else 1]:
                with run.step(f"bulk of {tokens} tokens: {name}"):
                    rates[name].append(count / processes[name].call(gpu_load.encode_s, texts))
        rows.append({
            "tokens": tokens,
            "texts": count,
            "texts_per_s": {name: statistics.median(rate) for name, rate in rates.items()},
            "ratio": {name: ratios(rates[OURS], rate) for name, rate in rates.items() if name != OURS},
        })  # fmt: skip
    return rows


def query(run: Run, processes: dict[str, Process]) -> dict[str, Any]:
    """Measure short queries, one after another."""
    found: dict[str, list[list[float]]] = {name: [] for name in processes}
    for process in processes.values():
        process.call(gpu_load.query_latencies_s, run.text.queries, run.plan.query_window_s / 4)
    for number in range(run.plan.rounds):
        for name in list(processes)[:: -1 if number % 2 else 1]:
            with run.step(f"one query: {name}"):
                latencies = processes[name].call(
                    gpu_load.query_latencies_s, run.text.queries, run.plan.query_window_s
                )
            found[name].append(latencies)
    p50s = {name: [statistics.median(one) for one in rounds] for name, rounds in found.items()}
    return {
        "latency_ms": {
            name: dict(
                zip(("p50", "p99"), np.percentile(np.concatenate(rounds), (50, 99)) * 1e3, strict=True)
            )
            for name, rounds in found.items()
        },
        "ratio": {name: ratios(p50, p50s[OURS]) for name, p50 in p50s.items() if name != OURS},
    }


def measure(quick: bool, console: Console) -> dict[str, Any]:
    about = machine.describe()
    paths.import_from_src()
    from embedshare.engine import weights

    model = weights.find("all-MiniLM-L6-v2")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        meter = stack.enter_context(Process(None))
        device = meter.call(gpu_load.device)
        on_gpu = device["kind"] == "cuda"
        plan = CPU if not on_gpu else QUICK if quick else FULL
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="embedshare-gpu-")))
        run = Run(plan, on_gpu, model, folder, meter)
        run.step = stack.enter_context(_progress(console, _steps(plan)))
        memories = memory(run)
        server = stack.enter_context(run.server())
        ways = {OURS: Way(server=_caller(server)), DEFAULT: run.default, TUNED: run.tuned}
        processes = {name: stack.enter_context(way.process()) for name, way in ways.items()}
        shown = {name: process.call(gpu_load.shown) for name, process in processes.items()}
        if on_gpu != ("cuda" in shown[OURS]):
            raise RuntimeError(f"the device is {device['kind']}, but the server computes in {shown[OURS]}")
        return {
            "when": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "plan": dataclasses.asdict(plan),
            "machine": about,
            "device": device,
            "computes": shown,
            "memory": memories,
            "bulk": bulk(run, processes, model),
            "query": query(run, processes),
            "took_s": time.monotonic() - began,
        }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; return 0 if everything was measured, else raise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short rounds, to see that everything works")
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:N, or cpu")
    parser.add_argument("--render", action="store_true", help="write the page again from gpu.json")
    given = parser.parse_args(arguments)
    console = Console()
    if not given.render:
        kind, _, index = given.device.partition(":")
        if kind == "cpu" or index:
            os.environ["CUDA_VISIBLE_DEVICES"] = index  # every process of this run sees that device, or none
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SIGTERM also stops the server
        results = measure(given.quick, console)
        if results["device"]["kind"] != kind:
            console.print(f"no {given.device} here: this was measured on the {results['device']['kind']}")
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    gpu_report.write(json.loads(RESULTS.read_text(encoding="utf-8")), PAGE, console)
    console.print(f"{RESULTS}\n{PAGE}")
    return 0


def _memory_of(run: Run, ways: list[Way], texts: list[str], serving: list[int]) -> float:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(way.process()) for way in ways]
        for process in processes:
            process.call(gpu_load.encode_s, texts)
        return run.memory_mb([*serving, *(process.call(gpu_load.process_id) for process in processes)])


def _caller(server: servers.Server) -> EmbedshareCaller:
    assert isinstance(server.caller, EmbedshareCaller)
    return server.caller


def _steps(plan: Plan) -> int:
    return 1 + 2 * len(plan.workers) + len(plan.bulk) * (1 + 3 * plan.rounds) + 3 * plan.rounds


@contextlib.contextmanager
def _progress(console: Console, steps: int) -> Iterator[Any]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=steps)

        @contextlib.contextmanager
        def step(text: str) -> Iterator[None]:
            progress.update(task, description=text)
            if not console.is_terminal:  # a bar cannot move in a log
                console.print(text)
            yield
            progress.advance(task)

        yield step


if __name__ == "__main__":
    from benchmarks import gpu  # its processes look for its parts there, not in __main__

    sys.exit(gpu.main())
