"""(c) Many clients, one short query a call: the usual load of web workers."""

from __future__ import annotations

from typing import Any

from benchmarks import agreement
from benchmarks.bench import Bench
from benchmarks.figures import Lines, Section, Table, counted, shown_ratio
from benchmarks.peers import fastapi_uvicorn, infinity_emb, litserve, mosec
from benchmarks.rows import contest

KEY = "queries"
#: The servers whose best result embedshare is also compared with.
SERVERS = tuple(peer.PEER.name for peer in (mosec, litserve, infinity_emb, fastapi_uvicorn))


def steps(bench: Bench) -> int:
    return 1 + contest.steps(bench, len(bench.competitors()), bench.plan.clients)


def measure(bench: Bench) -> dict[str, Any]:
    with bench.step("queries: the peers' vectors"):
        cosines = agreement.check(bench, [peer.name for peer in bench.peers])
    fleets = {name: bench.fleet(bench.running(name).caller) for name in bench.competitors()}
    best_of = [name for name in SERVERS if name in fleets]
    clients, window_s = bench.plan.clients, bench.plan.window_s
    return {
        "window_s": window_s,
        "rounds": bench.plan.rounds,
        "peers": {peer.name: peer.what for peer in bench.peers},
        "smallest_cosines": cosines,
        "best_of": best_of,
        "busy_when_idle": bench.busy_when_idle(),
        "results": contest.run(bench, "queries", fleets, clients, window_s, best_of),
    }


def section(data: dict[str, Any]) -> Section:
    results = data["results"]
    peers = "; ".join(f"{name}: {what}" for name, what in data["peers"].items())
    busy = ", ".join(f"{name} ({share:.0%} of a core)" for name, share in data["busy_when_idle"].items())
    asleep = f" Busy while idle, and so suspended except during its turns: {busy}." if busy else ""
    smallest = min(data["smallest_cosines"].values(), default=1.0)
    tables = [contest.table(results)]
    if data["best_of"]:
        tables.append(_best(results))
    return Section(
        "One short query a call",
        "Each client process sends one query of at most 60 characters, waits for the vector, sends the next. "
        "embedshare is called through its client; the peers over HTTP, their only interface, on kept-alive "
        "connections (http.client, msgspec for the JSON). "
        f"{data['rounds']} x {data['window_s']:g} s each, by turns. {contest.LOAD_CPU} Before the timing, "
        f"the peers' vectors of {agreement.TEXTS} queries were compared with SentenceTransformer's: "
        f"smallest cosine {smallest:.6f}.{asleep} The peers: {peers}.",
        tables,
        _headlines(data),
        _plots(results),
    )


def _best(results: list[dict[str, Any]]) -> Table:
    """Compare embedshare with the best of the embedding servers, by the number of clients."""
    rows = [
        [
            str(result["clients"]),
            result["best"]["fastest"],
            shown_ratio(result["best"]["rate_ratio"]),
            result["best"]["soonest"],
            shown_ratio(result["best"]["p50_ratio"]),
        ]
        for result in results
    ]
    rate, p50 = (
        "embedshare's rate over the best of each round",
        "the best p50 of each round over embedshare's",
    )
    return Table(["clients", "most calls/s", rate, "smallest p50", p50], rows, (rate, p50))


def _headlines(data: dict[str, Any]) -> list[tuple[str, str]]:
    first, last = data["results"][0], data["results"][-1]
    lines = [
        (f"Queries/s from {counted(last['clients'], 'client')}, against {name}", shown_ratio(ratio))
        for name, ratio in last["rate_ratio"].items()
    ]
    if data["best_of"]:
        against = f"against the best of {', '.join(data['best_of'])}"
        lines += [
            (
                f"Queries/s from {counted(result['clients'], 'client')}, {against}",
                shown_ratio(result["best"]["rate_ratio"]),
            )
            for result in (last, first)
        ]
    return lines


def _plots(results: list[dict[str, Any]]) -> list[Lines]:
    def line(name: str, figure: str) -> list[tuple[float, float]]:
        """Return that figure over the load reached."""
        return [(one["figures"][name]["calls_per_s"], one["figures"][name][figure]) for one in results]

    clients = [result["clients"] for result in results]
    names = list(results[0]["figures"])
    return [
        Lines(
            "queries-rate",
            "One short query a call: throughput",
            "clients",
            "calls/s",
            {
                name: [(one["clients"], one["figures"][name]["calls_per_s"], "") for one in results]
                for name in names
            },
        ),
        Lines(
            "queries-latency",
            "Latency against load: p50, dashed p99; the numbers are clients",
            "calls/s reached",
            "ms",
            {
                name: [
                    (x, y, str(count)) for (x, y), count in zip(line(name, "p50_ms"), clients, strict=True)
                ]
                for name in names
            },
            {name: line(name, "p99_ms") for name in names},
            logarithmic=True,
        ),
    ]
