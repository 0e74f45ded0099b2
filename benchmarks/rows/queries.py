"""(c) Many clients, one short query a call: what web workers do all day."""

from __future__ import annotations

from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import Bars, Section, shown_ratio
from benchmarks.rows import contest

KEY = "queries"


def steps(bench: Bench) -> int:
    return contest.steps(bench, len(bench.competitors()), bench.plan.clients)


def measure(bench: Bench) -> dict[str, Any]:
    fleets = {name: bench.fleet(bench.running(name).caller) for name in bench.competitors()}
    results = contest.run(bench, "queries", fleets, bench.plan.clients, bench.plan.window_s)
    return {
        "window_s": bench.plan.window_s,
        "rounds": bench.plan.rounds,
        "peers": {peer.name: peer.what for peer in bench.peers},
        "results": results,
    }


def section(data: dict[str, Any]) -> Section:
    results = data["results"]
    last = results[-1]
    peers = "; ".join(f"{name}: {what}" for name, what in data["peers"].items())
    groups = [f"{result['clients']} client" + "s" * (result["clients"] > 1) for result in results]
    names = list(last["figures"])
    return Section(
        "One short query a call",
        "Each client process sends one query of at most 60 characters, waits for the vector, sends the next. "
        "embedshare is called through its client; the peers over HTTP on kept-alive connections "
        "(http.client, msgspec for the JSON), which is how they are reached. "
        f"{data['rounds']} x {data['window_s']:g} s each, by turns. {contest.LOAD_CPU} The peers: {peers}.",
        [contest.table(results)],
        [
            (f"Queries/s from {last['clients']} clients, against {name}", shown_ratio(ratio))
            for name, ratio in last["rate_ratio"].items()
        ],
        [
            Bars(
                f"queries-{key}",
                title,
                unit,
                groups,
                {name: [result["figures"][name][figure] for result in results] for name in names},
            )
            for key, title, unit, figure in (
                ("rate", "One short query a call", "calls/s", "calls_per_s"),
                ("p50", "One short query a call: p50", "ms", "p50_ms"),
                ("p99", "One short query a call: p99", "ms", "p99_ms"),
            )
        ],
    )
