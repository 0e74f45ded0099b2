"""(j) OpenAI's client: our `/v1/embeddings` against infinity's own."""

from __future__ import annotations

from typing import Any

from benchmarks import agreement
from benchmarks.bench import Bench
from benchmarks.callers import Caller, HttpCaller, OpenAiCaller, OpenAiClientCaller
from benchmarks.figures import Lines, Section, counted, shown_ratio
from benchmarks.peers import infinity_emb
from benchmarks.rows import contest

KEY = "openai"
OURS = "embedshare /v1/embeddings"
RIVAL = infinity_emb.PEER.name


def _clients(bench: Bench) -> tuple[int, ...]:
    return tuple(count for count in bench.plan.clients if count != 4)


def _servers(bench: Bench) -> dict[str, str]:
    """Return the servers by their names in the table."""
    rivals = {name: name for name in bench.competitors() if name == RIVAL}
    return {OURS: "app.py"} | rivals


def steps(bench: Bench) -> int:
    return 1 + contest.steps(bench, len(_servers(bench)), _clients(bench))


def measure(bench: Bench) -> dict[str, Any]:
    servers = _servers(bench)
    callers = {name: _caller(bench.running(server).caller) for name, server in servers.items()}
    with bench.step("OpenAI's client: the servers' vectors"):
        agreement.check(bench, servers.values(), dict(zip(servers.values(), callers.values(), strict=True)))
    fleets = {name: bench.fleet(caller) for name, caller in callers.items()}
    results = contest.run(bench, "OpenAI's client", fleets, _clients(bench), bench.plan.window_s)
    return {"window_s": bench.plan.window_s, "rounds": bench.plan.rounds, "results": results}


def _caller(caller: Caller) -> OpenAiClientCaller:
    """Return OpenAI's client for the server that `caller` calls."""
    assert isinstance(caller, HttpCaller | OpenAiCaller)
    return OpenAiClientCaller(f"http://127.0.0.1:{caller.port}" + "/v1" * isinstance(caller, HttpCaller))


def section(data: dict[str, Any]) -> Section:
    results = data["results"]
    return Section(
        "OpenAI's client",
        "Each client process sends one query of at most 60 characters with the package `openai`, which asks "
        "for base64, waits for the vector, sends the next. The servers are one of our web workers at "
        "`/v1/embeddings` (`src/app.py`, default settings), over the model server, and infinity at "
        "`/embeddings`. "
        f"{data['rounds']} x {data['window_s']:g} s each, by turns. {contest.LOAD_CPU}",
        [contest.table(results)],
        [
            (
                f"OpenAI's client, calls/s from {counted(result['clients'], 'client')}, against {name}",
                shown_ratio(ratio),
            )
            for result in results[-1:]
            for name, ratio in result["rate_ratio"].items()
        ],
        [
            Lines(
                "openai-rate",
                "OpenAI's client, one short query a call: throughput",
                "clients",
                "calls/s",
                {
                    name: [(one["clients"], one["figures"][name]["calls_per_s"], "") for one in results]
                    for name in results[0]["figures"]
                },
            )
        ],
    )
