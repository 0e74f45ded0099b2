"""Models that do not fit together, drawn by Zipf's law: what was loaded, against the optimum of Belady."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Lines

#: Texts whose vectors are known for each model.
TEXTS = [f"which text is number {number} of all" for number in range(20)]
#: The least cosine of a vector and the model's own; vectors of two of these models have less than 0.9.
RIGHT = 0.999
#: Seconds between two looks at the memory.
LOOK_S = 0.5

#: Calls models from threads for some seconds; prints time, model, milliseconds and error of each call.
LOAD = """
import json, random, sys, threading, time
import numpy as np
from embeddingClient import EmbeddingClient
names, threads, seconds, file, texts, right = json.loads(sys.argv[1])
expected = np.load(file)
first = EmbeddingClient()
clients = [first.of_model(name) for name in names]
weights = [1 / (rank + 1) for rank in range(len(names))]
print("ready", flush=True)
sys.stdin.readline()
calls, end = [], time.monotonic() + seconds
def run(seed):
    rng = random.Random(seed)
    while time.monotonic() < end:
        which, text = rng.choices(range(len(names)), weights)[0], rng.randrange(len(texts))
        at, began, error = time.time(), time.monotonic(), None
        try:
            vector = clients[which].encode(texts[text], timeout=120.0)
            if not float(vector @ expected[names[which]][text]) > right:
                error = "wrong"
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        calls.append((at, names[which], (time.monotonic() - began) * 1e3, error))
seeds = random.Random(int(sys.argv[2]))
all_threads = [threading.Thread(target=run, args=(seeds.random(),)) for _ in range(threads)]
[each.start() for each in all_threads]
[each.join() for each in all_threads]
print(json.dumps(calls))
"""


def expected(models: dict[str, Path], file: Path) -> None:
    """Write the vectors of TEXTS by SentenceTransformer, for each model."""
    from sentence_transformers import SentenceTransformer

    rows = {name: SentenceTransformer(str(path), device="cpu").encode(TEXTS) for name, path in models.items()}
    names = list(rows)
    others = [float((rows[a] * rows[b]).sum(1).max()) for a in names for b in names if a < b]
    assert max(others) < 0.9, f"two models have nearly the same vectors: {max(others)}"
    np.savez(file, **rows)


def run(
    server: Any, models: dict[str, Path], room: int, budget: int, minutes: float, folder: Path
) -> dict[str, Any]:
    """8 clients in 4 processes; memory is looked at meanwhile. `server`: see models._Server."""
    import psutil

    file = folder / "expected.npz"
    given = json.dumps([list(models), 2, 60 * minutes, str(file), TEXTS, RIGHT])
    loads = [server.start(LOAD, given, str(number)) for number in range(4)]
    process, looks, began = psutil.Process(server.process.pid), [], time.time()
    rest = process.memory_info().rss
    for load in loads:
        load.stdin.write("go\n")
        load.stdin.flush()
    with server.client() as client:
        while (now := time.time() - began) < 60 * minutes:
            held = sum(one["bytes"] for one in client.models() if one["state"] == "ready")
            looks.append((round(now, 1), held, process.memory_info().rss - rest))
            time.sleep(LOOK_S)
        calls = sorted(tuple(call) for load in loads for call in json.loads(load.communicate()[0]))
        counted = {one["id"]: one["loads"] for one in client.models()}
    return figures(calls, counted, looks, budget, minutes, room)


def figures(
    calls: Sequence[Any], loads: dict[str, int], looks: Sequence[Any], budget: int, minutes: float, room: int
) -> dict[str, Any]:
    """`calls`: (time, model, milliseconds, error) in order; `looks`: (seconds, bytes of loaded models, growth
    of the process); `room`: the models that fit."""
    asked = [name for _, name, _, _ in calls]
    errors = [error for _, _, _, error in calls if error is not None]
    return {
        "minutes": minutes, "budget": budget, "room": room, "calls": len(calls),
        "asked": dict(Counter(asked)),
        "wrong": errors.count("wrong"), "failed": len(errors) - errors.count("wrong"),
        "errors": Counter(error[:120] for error in errors).most_common(3),
        "over_budget": sum(held > budget for _, held, _ in looks), "looks": list(looks),
        "loads": loads, "optimal_loads": optimal_loads(asked, room), "lru_loads": lru_loads(asked, room),
        "slowest_ms": round(max(took for _, _, took, _ in calls)),
    }  # fmt: skip


def optimal_loads(asked: Sequence[str], room: int) -> int:
    """The fewest loads for these requests: the model goes that is asked for again last (Belady, 1966,
    doi:10.1147/sj.52.0078)."""
    again: list[float] = [float("inf")] * len(asked)
    following: dict[str, int] = {}
    for at in range(len(asked) - 1, -1, -1):
        again[at] = following.get(asked[at], float("inf"))
        following[asked[at]] = at
    held: dict[str, float] = {}
    loads = 0
    for at, name in enumerate(asked):
        if name not in held:
            loads += 1
            if len(held) == room:
                del held[max(held, key=lambda one: held[one])]
        held[name] = again[at]
    return loads


def lru_loads(asked: Iterable[str], room: int) -> int:
    """Loads if the least recently used model goes each time."""
    held: dict[str, None] = {}
    loads = 0
    for name in asked:
        loads += name not in held
        held.pop(name, None)
        held[name] = None
        if len(held) > room:
            del held[next(iter(held))]
    return loads


def draw(found: dict[str, Any], folder: Path) -> Path:
    """The memory over time, as a plot."""
    from benchmarks import plots  # with matplotlib, which tests do without

    gb = 1e9
    looks = found["looks"]
    end = looks[-1][0] / 60
    return plots.draw(
        Lines(
            "models-memory",
            f"{len(found['asked'])} models, memory for {found['room']}, drawn by Zipf's law",
            "minutes",
            "GB",
            {
                "budget": [(0, found["budget"] / gb, ""), (end, found["budget"] / gb, "")],
                "loaded models": [(at / 60, held / gb, "") for at, held, _ in looks],
                "growth of the process": [(at / 60, grown / gb, "") for at, _, grown in looks],
            },
            marked=False,
        ),
        folder,
    )


def told(found: dict[str, Any]) -> list[str]:
    """The lines of the report."""
    looks, loads = len(found["looks"]), sum(found["loads"].values())
    share = loads / max(1, found["calls"])
    over = sum(grown > found["budget"] for _, _, grown in found["looks"])
    peak = max(grown for _, _, grown in found["looks"]) / found["budget"]
    return [
        f"{len(found['asked'])} models, memory for {found['room']}, 8 clients that draw models by Zipf's law "
        f"for {found['minutes']:g} minutes: {found['calls']:,} calls, {found['wrong']} wrong, "
        f"{found['failed']} failed, the slowest took {found['slowest_ms'] / 1000:.1f} s. The loaded models "
        f"were over the budget in {found['over_budget']} of {looks:,} looks. {loads:,} loads ({share:.1%} of "
        f"the calls); for the same requests one after another Belady's optimum needs "
        f"{found['optimal_loads']:,}, and plain least recently used {found['lru_loads']:,}. The process as a "
        f"whole, with its libraries, loads under way and fixed shapes, had grown by more than the budget in "
        f"{over:,} looks, by {peak:.2f}x of it at most.",
        "",
        "![memory over time](benchmarks/models-memory.svg)",
    ]
