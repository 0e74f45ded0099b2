"""(e) One query at a time, against SentenceTransformer in the process itself, with no server between."""

from __future__ import annotations

from typing import Any

from benchmarks.bench import OURS, Bench
from benchmarks.figures import Section, Table, shown_ratio
from benchmarks.rows import contest

KEY = "single"
LOCAL = "SentenceTransformer in process"


def steps(bench: Bench) -> int:
    return contest.steps(bench, 2, (1,))


def measure(bench: Bench) -> dict[str, Any]:
    fleets = {OURS: bench.fleet(bench.ours()), LOCAL: bench.local()}
    results = contest.run(bench, "one query at a time", fleets, (1,), bench.plan.window_s)
    return {"window_s": bench.plan.window_s, "rounds": bench.plan.rounds, "results": results}


def section(data: dict[str, Any]) -> Section:
    result = data["results"][0]
    rows = []
    for name, figures in result["figures"].items():
        ratio = result["p50_ratio"].get(name)
        shown = shown_ratio(ratio) if ratio else ""
        rows.append([name, f"{figures['p50_ms']:.2f}", f"{figures['p99_ms']:.2f}", shown])
    return Section(
        "One query at a time",
        "One process sends short queries one after another: `encode(text)` through the client, and "
        "`SentenceTransformer.encode(text)` with its defaults in the process itself. "
        f"{data['rounds']} x {data['window_s']:g} s each, by turns.",
        [
            Table(
                ["where", "p50, ms", "p99, ms", "embedshare is faster by"], rows, ("embedshare is faster by",)
            )
        ],
        [
            (
                "p50 of one query, against SentenceTransformer in process",
                shown_ratio(result["p50_ratio"][LOCAL]),
            )
        ],
    )
