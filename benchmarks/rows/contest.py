"""Competitors under the same load, taking turns: what the rows about calls have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import Sample, Table, ratios, shown_ratio, summary
from benchmarks.load import Fleet


def steps(bench: Bench, competitors: int, clients: tuple[int, ...]) -> int:
    """How many windows `run` measures."""
    return len(clients) * bench.plan.rounds * competitors


def run(
    bench: Bench, label: str, fleets: Mapping[str, Fleet], clients: tuple[int, ...], window_s: float
) -> list[dict[str, Any]]:
    """For each number of clients, every fleet once a round, every second round in the opposite order. The
    first fleet is ours; the ratios are its rate over the others' and their p50 over its."""
    ours = next(iter(fleets))
    results = []
    for count in clients:
        samples: dict[str, list[Sample]] = {name: [] for name in fleets}
        for number in range(bench.plan.rounds):
            for name in list(fleets)[:: -1 if number % 2 else 1]:
                with bench.step(f"{label}: {name}, {count} clients"):
                    samples[name].append(fleets[name].measure(count, window_s))
        rates = {name: [sample.calls_per_s for sample in taken] for name, taken in samples.items()}
        p50s = {
            name: [summary([sample], bench.cores)["p50_ms"] for sample in taken]
            for name, taken in samples.items()
        }
        results.append(
            {
                "clients": count,
                "figures": {name: summary(taken, bench.cores) for name, taken in samples.items()},
                "rate_ratio": {name: ratios(rates[ours], rates[name]) for name in fleets if name != ours},
                "p50_ratio": {name: ratios(p50s[name], p50s[ours]) for name in fleets if name != ours},
            }
        )
    return results


def table(results: list[dict[str, Any]], unit: str = "ms") -> Table:
    """The figures, one line for each competitor and number of clients."""
    factor = 1000 if unit == "us" else 1
    rows = []
    for result in results:
        for name, figures in result["figures"].items():
            ratio = result["rate_ratio"].get(name)
            rows.append(
                [
                    str(result["clients"]),
                    name,
                    f"{figures['calls_per_s']:,.0f}",
                    f"{figures['p50_ms'] * factor:,.2f}"
                    if unit == "ms"
                    else f"{figures['p50_ms'] * factor:,.0f}",
                    f"{figures['p99_ms'] * factor:,.2f}"
                    if unit == "ms"
                    else f"{figures['p99_ms'] * factor:,.0f}",
                    shown_ratio(ratio) if ratio else "",
                    f"{figures['load_cpu_share']:.0%}",
                ]
            )
    columns = ["clients", "server", "calls/s", f"p50, {unit}", f"p99, {unit}"]
    return Table(
        [*columns, "embedshare's rate over it", "CPU of the load"], rows, ("embedshare's rate over it",)
    )


LOAD_CPU = "`CPU of the load` is the share of all cores that the clients themselves took."
