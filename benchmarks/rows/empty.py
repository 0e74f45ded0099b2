"""(b) A call that needs no model: the cost of the transport, against multiprocessing.managers."""

from __future__ import annotations

from typing import Any

from benchmarks.bench import OURS, Bench
from benchmarks.callers import EmptyCaller
from benchmarks.figures import Section, shown_ratio
from benchmarks.rows import contest

KEY = "empty"
STOCK = "multiprocessing.managers, pickle"


def steps(bench: Bench) -> int:
    return contest.steps(bench, 2, bench.plan.empty_clients)


def measure(bench: Bench) -> dict[str, Any]:
    ours = bench.ours()
    fleets = {
        OURS: bench.fleet(EmptyCaller(ours.port, ours.key_file)),
        STOCK: bench.fleet(bench.running("stock").caller),
    }
    results = contest.run(bench, "empty call", fleets, bench.plan.empty_clients, bench.plan.empty_window_s)
    return {"window_s": bench.plan.empty_window_s, "rounds": bench.plan.rounds, "results": results}


def section(data: dict[str, Any]) -> Section:
    last = data["results"][-1]
    return Section(
        "An empty call",
        "`client.get_active_operations_count()`, which the server answers with a small number and without "
        "its model, against a stock `multiprocessing.managers` server (TCP, loopback, pickle) "
        f"whose method returns a small number. {data['rounds']} x {data['window_s']:g} s each, "
        "by turns. " + contest.LOAD_CPU,
        [contest.table(data["results"], "us")],
        [
            (
                f"Empty calls/s from {last['clients']} clients, against multiprocessing.managers with pickle",
                shown_ratio(last["rate_ratio"][STOCK]),
            )
        ],
        embeds=False,
    )
