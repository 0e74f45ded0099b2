"""(h) The time from the start of a server to its first real answer."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.bench import OURS, Bench
from benchmarks.figures import Section, Table, ratios, shown_ratio
from benchmarks.servers import model_server

KEY = "startup"
FIRST = "embedshare, first start on a machine"


def steps(bench: Bench) -> int:
    return bench.plan.starts * (len(bench.competitors()) + 1)


def measure(bench: Bench) -> dict[str, Any]:
    """Measure one start at a time; the servers of the last round keep running for the next rows."""
    taken_s: dict[str, list[float]] = {name: [] for name in [OURS, FIRST, *bench.competitors()]}
    for number in range(bench.plan.starts):
        with bench.step(f"start {number + 1}: {FIRST}"):
            first = model_server(bench.folder, cache=f"cache-of-first-start-{number}")
            try:
                taken_s[FIRST].append(first.start())
            finally:
                first.stop()
        for name in bench.competitors():
            with bench.step(f"start {number + 1}: {name}"):
                bench.server(name).stop()
                taken_s[name].append(bench.server(name).start())
                bench.settle(name)
    return {"seconds": taken_s}


def section(data: dict[str, Any]) -> Section:
    seconds = data["seconds"]
    rows = []
    for name, taken in seconds.items():
        ratio = "" if name == OURS else shown_ratio(ratios(taken, seconds[OURS]))
        shown = ", ".join(f"{one:.1f}" for one in taken)
        rows.append([name, f"{statistics.median(taken):.1f}", shown, ratio])
    return Section(
        "From start to first answer",
        "Seconds from starting the process to the vector of one text in the caller's hands, requested "
        "repeatedly until it comes. Each start runs alone, next to idle servers of this run. The first may "
        "read its files from the disk, later ones have them cached. At its first start on a machine the "
        "model server converts the model and stores the result; every later start reads it.",
        [
            Table(
                ["server", "median, s", "each, s", "embedshare is faster by"],
                rows,
                ("embedshare is faster by",),
            )
        ],
        [
            (
                "Start to first answer, against its first start on a machine",
                f"{statistics.median(seconds[OURS]):.1f} s, "
                + shown_ratio(ratios(seconds[FIRST], seconds[OURS])),
            )
        ],
    )
