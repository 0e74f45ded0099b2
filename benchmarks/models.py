"""Several models in one server: `python -m benchmarks.models [--zipf-minutes 10]`.

Writes benchmarks/models.json, the table of docs/models.md and a plot. The models are all-MiniLM-L6-v2 with
another last norm each: their compute is the same, so ratios show what several models cost, and their vectors
differ, so that a wrong one is noticed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks import machine, paths, servers, zipf

RESULTS = paths.HERE / "models.json"
PAGE = paths.DOCS / "models.md"
BEGIN, END = "<!-- models -->", "<!-- /models -->"
PROCESSES, THREADS, WINDOW_S, ROUNDS = 4, 4, 6.0, 3
BULK_TEXTS = 20_000
WORKERS = 8
#: Models of the Zipf run, and how many fit into its memory.
MANY, FIT = 6, 3

#: Calls models by turns from threads for some seconds; prints the milliseconds of each call and its errors.
LOAD = """
import json, sys, threading, time
from embeddingClient import EmbeddingClient
names, threads, seconds = json.loads(sys.argv[1])
first = EmbeddingClient()
clients = [first.of_model(name) for name in names]
for client in clients:
    client.encode("a first text")
print("ready", flush=True)
sys.stdin.readline()
times, wrong, end = [], [], time.monotonic() + seconds
def run(number):
    while time.monotonic() < end:
        number += 1
        began = time.monotonic()
        try:
            vector = clients[number % len(names)].encode(f"which text is number {number} of all")
            times.append((time.monotonic() - began) * 1e3)
            if vector.shape != (384,):
                wrong.append("shape")
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
all_threads = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
[each.start() for each in all_threads]
[each.join() for each in all_threads]
print(json.dumps([times, wrong]))
"""
#: Encodes many texts with one model; prints when it begins and when it is done.
BULK = """
import sys
from embeddingClient import get_embedding_model
model = get_embedding_model(sys.argv[1])
model.encode("a first text")
print("ready", flush=True)
sys.stdin.readline()
texts = [f"text number {n} of a long list of texts, with some more words" for n in range(int(sys.argv[2]))]
model.encode(texts)
print("done", flush=True)
"""
#: A worker with all models, shared or its own; prints `ready` and stays until its input ends.
WORKER = """
import sys
from embeddingClient import EmbeddingClient
from embedshare.settings import Settings
shared, *names = sys.argv[1:]
if shared == "shared":
    first = EmbeddingClient()
    models = [first.of_model(name) for name in names]
else:
    given = [Settings.load().with_values({"EMBEDDING_MODEL_NAME": name}) for name in names]
    models = [EmbeddingClient(settings=settings) for settings in given]
for model in models:
    model.encode("one text")
print("ready", flush=True)
sys.stdin.read()
"""


def main() -> None:
    given = _parser().parse_args()
    paths.import_from_src()
    described = machine.describe()
    with tempfile.TemporaryDirectory(prefix="embedshare-models-") as name:
        figures = measure(Path(name), given.zipf_minutes)
    results = {"machine": described, **figures}
    if "zipf" in figures:
        zipf.draw(figures["zipf"], paths.DOCS / "benchmarks")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = _table(results)
    Console().print("\n".join(lines))
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text("\n".join([before + BEGIN, *lines, END]) + after, encoding="utf-8")


def measure(folder: Path, zipf_minutes: float) -> dict[str, Any]:
    """All figures, in a folder for models, keys and caches."""
    from embedshare.engine import weights
    from tests.layers import DEFAULT

    models = {}
    for number in range(MANY):
        models[f"m{number}"] = copy = folder / f"model-{number}"
        shutil.copytree(weights.find(DEFAULT), copy)
        _vary(copy / "model.safetensors", number)
    three = list(models)[:3]
    figures: dict[str, Any] = {}
    with serving(folder, models) as server:
        figures["first_load_s"] = [_seconds_to_first_answer(server, name) for name in three]
        figures["reload_s"] = [_reload(server, name) for name in three for _ in range(2)]
        rates: dict[str, list[float]] = {"one model": [], "three models": []}
        for _ in range(ROUNDS):
            for kind, names in (("one model", three[:1]), ("three models", three)):
                rates[kind].append(_rate(server, names))
        figures["calls_per_s"] = rates
        figures["idle_ms"] = _alone(server, [three[1]])
        figures["beside_bulk_ms"] = _beside_bulk(server, three[0], [three[1]])
        figures["idle_again_ms"] = _alone(server, [three[1]])
        figures["beside_load_ms"] = _beside_load(server, [three[1]], list(models)[3])
        _unload(server, list(models)[3])
        figures["memory"] = _memory(server, three, [str(models[name]) for name in three], folder)
        entries = _entries(server)
    if zipf_minutes:
        size = max(one["bytes"] for one in entries)
        zipf.expected(models, folder / "expected.npz")
        budget = int(size * (FIT + 0.5))
        with serving(folder, models, EMBEDDING_MAX_MODEL_BYTES=str(budget)) as server:
            figures["zipf"] = zipf.run(server, models, FIT, budget, zipf_minutes, folder)
    return figures


def _vary(file: Path, number: int) -> None:
    """Turn the last layer's norm of a model, so that its vectors are no other's."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(file))
    name = "encoder.layer.5.output.LayerNorm.weight"
    signs = torch.where(torch.rand(384, generator=torch.Generator().manual_seed(number)) < 0.5, -1.0, 1.0)
    tensors[name] = tensors[name] * (signs if number else 1.0)
    tensors["encoder.layer.5.output.LayerNorm.bias"] *= signs if number else 1.0
    save_file(tensors, str(file), {"format": "pt"})


class _Server:
    """A model server with a file of models."""

    def __init__(self, folder: Path, models: dict[str, Path], **settings: str) -> None:
        self.settings = {
            "EMBEDDING_SERVER_PORT": str(servers.free_port()),
            "EMBEDDING_AUTHKEY_FILE": str(folder / "authkey"),
            "EMBEDDING_CACHE_DIR": str(folder / "cache"),
            "EMBEDDING_MODELS_FILE": str(folder / "models.yaml"),
            "EMBEDDING_FALLBACK": "none",
            "PYTHONPATH": str(paths.SRC),
            **settings,
        }
        file = folder / "models.yaml"
        entries = [f"  - id: {name}\n    name: {path}\n" for name, path in models.items()]
        file.write_text("models:\n  local:\n" + "".join(entries))
        file.chmod(0o600)
        self.process = subprocess.Popen(
            [sys.executable, str(paths.SRC / "modelServer.py")],
            env=servers.environment(self.settings),
            stderr=(folder / "server.log").open("ab"),
        )

    def wait(self) -> None:
        """Until it answers."""
        from embedshare.errors import ServerUnavailable

        limit = time.monotonic() + servers.START_LIMIT_S
        while True:
            try:
                _entries(self)
                return
            except ServerUnavailable:
                if time.monotonic() > limit or self.process.poll() is not None:
                    raise
                time.sleep(0.2)

    def client(self) -> Any:
        from embeddingClient import EmbeddingClient
        from embedshare.settings import Settings

        return EmbeddingClient(settings=Settings.load(self.settings, dotenv=Path("no.env")), max_retries=60)

    def start(self, code: str, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        """A process of this code, once it has printed `ready`."""
        given = servers.environment({**self.settings, **settings})
        command, pipe = [sys.executable, "-c", code, *arguments], subprocess.PIPE
        process = subprocess.Popen(command, env=given, stdin=pipe, stdout=pipe, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process


@contextmanager
def serving(folder: Path, models: dict[str, Path], **settings: str) -> Iterator[_Server]:
    """A model server of these models by id, which ends with the block."""
    server = _Server(folder, models, **settings)
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


def _entries(server: _Server) -> list[dict[str, Any]]:
    with server.client() as client:
        entries: list[dict[str, Any]] = client.models()
    return entries


def _seconds_to_first_answer(server: _Server, name: str) -> float:
    with server.client() as first:
        began = time.monotonic()
        first.of_model(name).encode("a first text", timeout=300.0)
        return round(time.monotonic() - began, 3)


def _unload(server: _Server, name: str) -> None:
    with server.client() as first:
        first.of_model(name).manage_model("unload")
        while next(one for one in first.models() if one["id"] == name)["state"] != "standby":
            time.sleep(0.05)


def _reload(server: _Server, name: str) -> float:
    _unload(server, name)
    time.sleep(1.0)
    return _seconds_to_first_answer(server, name)


def _loaded(
    server: _Server, names: Sequence[str], processes: int, threads: int, seconds: float
) -> list[subprocess.Popen[str]]:
    return [server.start(LOAD, json.dumps([list(names), threads, seconds])) for _ in range(processes)]


def _go(loads: list[subprocess.Popen[str]]) -> None:
    for load in loads:
        assert load.stdin is not None
        load.stdin.write("go\n")
        load.stdin.flush()


def _results(loads: list[subprocess.Popen[str]]) -> tuple[list[float], list[str]]:
    times, wrong = [], []
    for load in loads:
        told = json.loads(load.communicate()[0].splitlines()[-1])
        times += told[0]
        wrong += told[1]
    return times, wrong


def _rate(server: _Server, names: Sequence[str]) -> float:
    loads = _loaded(server, names, PROCESSES, THREADS, WINDOW_S)
    _go(loads)
    times, wrong = _results(loads)
    assert not wrong, wrong[:3]
    return round(len(times) / WINDOW_S, 1)


def _of(times: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100)
    return {"p50": round(statistics.median(times), 2), "p99": round(cuts[98], 2), "calls": len(times)}


def _alone(server: _Server, names: Sequence[str]) -> dict[str, float]:
    loads = _loaded(server, names, 1, 1, WINDOW_S)
    _go(loads)
    times, wrong = _results(loads)
    assert not wrong, wrong[:3]
    return _of(times)


def _beside_bulk(server: _Server, bulk_model: str, names: Sequence[str]) -> dict[str, float]:
    bulk = server.start(BULK, bulk_model, str(BULK_TEXTS))
    loads = _loaded(server, names, 1, 1, 2 * WINDOW_S)
    _go([bulk])
    time.sleep(1.0)
    _go(loads)
    times, wrong = _results(loads)
    still = bulk.poll() is None
    bulk.communicate()
    assert not wrong, wrong[:3]
    return {**_of(times), "bulk_outlasted_the_queries": still}


def _beside_load(server: _Server, names: Sequence[str], loaded: str) -> dict[str, float]:
    loads = _loaded(server, names, 1, 1, 3 * WINDOW_S)
    _go(loads)
    seconds = _seconds_to_first_answer(server, loaded)
    times, wrong = _results(loads)
    assert not wrong, wrong[:3]
    within = times[: max(100, int(len(times) * min(1.0, seconds / (3 * WINDOW_S))))]
    return {**_of(within), "load_s": seconds, "failed": len(wrong)}


def _pss(pids: Sequence[int]) -> float:
    """Megabytes of processes and their children; shared pages count once."""
    every = [one for pid in pids for one in (psutil.Process(pid), *psutil.Process(pid).children(True))]
    return sum(one.memory_full_info().pss for one in every) / 1e6


def _memory(server: _Server, names: list[str], folders: list[str], folder: Path) -> dict[str, float]:
    found = {}
    for kind, given in (("shared", names), ("local", folders)):
        settings = {} if kind == "shared" else {"USE_IPC_EMBEDDING": "false", "EMBEDDING_MODELS_FILE": ""}
        workers = [server.start(WORKER, kind, *given, **settings) for _ in range(WORKERS)]
        pids = [worker.pid for worker in workers] + ([server.process.pid] if kind == "shared" else [])
        found[kind] = round(_pss(pids))
        for worker in workers:
            worker.communicate("")
    return found


def _table(results: dict[str, Any]) -> list[str]:
    one, three = (statistics.median(results["calls_per_s"][kind]) for kind in ("one model", "three models"))
    idle = results["idle_ms"]["p99"]
    bulk, load, memory = results["beside_bulk_ms"], results["beside_load_ms"], results["memory"]
    first, again = (statistics.median(results[kind]) for kind in ("first_load_s", "reload_s"))
    told = results["machine"]
    rows = [
        ("short queries of 16 clients to 3 models, of the rate with 1", f"{three:,.0f} of {one:,.0f} calls/s",
         f"{three / one:.2f}x", "0.95x"),
        ("p99 of a short query while another worker encodes 20,000 texts with another model, of idle",
         f"{bulk['p99']:.1f} of {idle:.1f} ms", f"{bulk['p99'] / idle:.1f}x", "4x"),
        ("p99 of a short query while another model is loaded and converted, of idle",
         f"{load['p99']:.1f} of {idle:.1f} ms, {load['failed']} failed", f"{load['p99'] / idle:.1f}x", "3x"),
        ("an evicted model's first answer, of its first load", f"{again:.2f} of {first:.2f} s",
         f"{again / first:.2f}x", "0.2x"),
        (f"memory of {WORKERS} workers with 3 local models each, of 3 shared ones",
         f"{memory['local']:,.0f} of {memory['shared']:,.0f} MB",
         f"{memory['local'] / memory['shared']:.1f}x", "5x"),
    ]  # fmt: skip
    lines = [
        f"One run of `python -m benchmarks.models`, {told['cpu']}, {told['cores']} cores: models of "
        "all-MiniLM-L6-v2's size.",
        "",
        "| figure | measured | ratio | target |",
        "|---|---|---|---|",
        *(f"| {what} | {measured} | **{ratio}** | {target} |" for what, measured, ratio, target in rows),
    ]
    if "zipf" in results:
        lines += ["", *zipf.told(results["zipf"])]
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--zipf-minutes", type=float, default=0.0, help="0 leaves that run out")
    return parser


if __name__ == "__main__":
    main()
