"""Competitors under the same load, taking turns: the common part of the rows on calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import Sample, Table, counted, ratios, shown_ratio, summary
from benchmarks.load import Clients


def steps(bench: Bench, competitors: int, clients: tuple[int, ...]) -> int:
    """Return the number of windows that `run` measures."""
    return len(clients) * bench.plan.rounds * competitors


def run(
    bench: Bench,
    label: str,
    fleets: Mapping[str, Clients],
    clients: tuple[int, ...],
    window_s: float,
    best_of: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Measure every fleet once a round for each number of clients, every second round in reverse order.

    The first fleet is ours. The ratios are its rate over the others', and their p50 over its p50. The same
    holds for the best of `best_of` in each round.
    """
    ours = next(iter(fleets))
    results = []
    for count in clients:
        samples: dict[str, list[Sample]] = {name: [] for name in fleets}
        for number in range(bench.plan.rounds):
            for name in list(fleets)[:: -1 if number % 2 else 1]:
                with bench.step(f"{label}: {name}, {counted(count, 'client')}"), bench.turn(name):
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
                "best": _best(rates, p50s, ours, best_of) if best_of else None,
            }
        )
    return results


def _best(
    rates: dict[str, list[float]], p50s: dict[str, list[float]], ours: str, best_of: Sequence[str]
) -> dict[str, Any]:
    best_rates = [max(each) for each in zip(*(rates[name] for name in best_of), strict=True)]
    best_p50s = [min(each) for each in zip(*(p50s[name] for name in best_of), strict=True)]
    return {
        "fastest": max(best_of, key=lambda name: sum(rates[name])),
        "soonest": min(best_of, key=lambda name: sum(p50s[name])),
        "rate_ratio": ratios(rates[ours], best_rates),
        "p50_ratio": ratios(best_p50s, p50s[ours]),
    }


def table(results: list[dict[str, Any]], unit: str = "ms") -> Table:
    """Return the figures, one line for each competitor and number of clients."""
    factor, digits = (1000, 0) if unit == "us" else (1, 2)
    rows = []
    for result in results:
        for name, figures in result["figures"].items():
            ratio = result["rate_ratio"].get(name)
            rows.append(
                [
                    str(result["clients"]),
                    name,
                    f"{figures['calls_per_s']:,.0f}",
                    f"{figures['p50_ms'] * factor:,.{digits}f}",
                    f"{figures['p99_ms'] * factor:,.{digits}f}",
                    shown_ratio(ratio) if ratio else "",
                    f"{figures['load_cpu_share']:.0%}",
                ]
            )
    columns = ["clients", "server", "calls/s", f"p50, {unit}", f"p99, {unit}"]
    return Table(
        [*columns, "embedshare's rate over it", "CPU of the load"], rows, ("embedshare's rate over it",)
    )


LOAD_CPU = "`CPU of the load` is the clients' own share of all cores."
