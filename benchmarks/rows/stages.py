"""(j) The stages of a call's time, from the server's own clocks and the client's."""

from __future__ import annotations

from typing import Any

from benchmarks.bench import TEXTS_A_CALL, Bench
from benchmarks.callers import EmbedshareSession
from benchmarks.figures import Section, Shares, Table, counted
from benchmarks.load import Clients

KEY = "stages"
STAGES = ("decode", "tokenize", "queue", "compute", "encode")
REST = "wire and client"


def _cases(bench: Bench) -> dict[str, tuple[Clients, int]]:
    queries, many = bench.fleet(bench.ours()), bench.many(bench.ours())
    most = max(bench.plan.clients)
    return {
        "1 client, one short query a call": (queries, 1),
        f"{counted(most, 'client')}, one short query a call": (queries, most),
        f"1 client, {TEXTS_A_CALL} paragraphs a call": (many, 1),
    }


def steps(bench: Bench) -> int:
    return 3 * bench.plan.rounds


def measure(bench: Bench) -> dict[str, Any]:
    cases = _cases(bench)
    sums = {case: {"calls": 0.0, "client": 0.0, **dict.fromkeys(STAGES, 0.0)} for case in cases}
    session = bench.ours().connect()
    try:
        for _ in range(bench.plan.rounds):
            for case, (clients, count) in cases.items():
                with bench.step(f"stages: {case}"):
                    for name, value in _window(session, clients, count, bench.plan.stage_window_s).items():
                        sums[case][name] += value
    finally:
        session.close()
    return {
        "window_s": bench.plan.stage_window_s,
        "rounds": bench.plan.rounds,
        "cases": {case: {"calls": sum_["calls"], **_means_us(sum_)} for case, sum_ in sums.items()},
    }


def _window(session: EmbedshareSession, clients: Clients, count: int, window_s: float) -> dict[str, float]:
    """Return the server's and the clients' seconds for the calls of one window, and the number of calls.

    Raises RuntimeError if the server has answered other calls.
    """
    clients.fleet.connect(clients.caller, count)  # warms up before the clocks are read
    before = session.stats()
    sample = clients.fleet.load(count, window_s)
    after = session.stats()
    calls = after["successful_requests"] - before["successful_requests"]
    if calls != len(sample.latencies_s):
        raise RuntimeError(f"the server answered {calls} calls, the clients made {len(sample.latencies_s)}")
    spent = {stage: after["stage_seconds"][stage] - before["stage_seconds"][stage] for stage in STAGES}
    return {"calls": calls, "client": float(sample.latencies_s.sum()), **spent}


def _means_us(sums: dict[str, float]) -> dict[str, Any]:
    stages = {stage: sums[stage] / sums["calls"] * 1e6 for stage in STAGES}
    client = sums["client"] / sums["calls"] * 1e6
    return {"client_us": client, "stages_us": {**stages, REST: client - sum(stages.values())}}


def section(data: dict[str, Any]) -> Section:
    cases = data["cases"]
    names = [*STAGES, REST]
    rows = [
        [
            case,
            f"{means['client_us']:,.0f}",
            *(f"{us:,.0f} ({us / means['client_us']:.0%})" for us in means["stages_us"].values()),
        ]
        for case, means in cases.items()
    ]
    return Section(
        "Where the time of a call goes",
        "Mean microseconds of a call. The server's own clocks measure decoding the message, tokenizing, "
        "waiting for a batch, computing and encoding the answer. The rest of the clients' mean is the wire, "
        "the client and waking up. The compute of a call is the time of its batch, which other calls may "
        f"share. {data['rounds']} x {data['window_s']:g} s each.",
        [Table(["", "client's mean, us", *names], rows, ("client's mean, us",))],
        [
            (f"Time of a call outside of the model's compute: {case}", _outside(means))
            for case, means in cases.items()
        ],
        [
            Shares(
                "stages",
                "Where the time of a call goes, us",
                [
                    f"{case.replace(', ', chr(10))}\n{means['client_us']:,.0f} us"
                    for case, means in cases.items()
                ],
                {name: [max(0.0, means["stages_us"][name]) for means in cases.values()] for name in names},
                {name: [f"{means['stages_us'][name]:,.0f}" for means in cases.values()] for name in names},
            )
        ],
    )


def _outside(means: dict[str, Any]) -> str:
    outside_us = means["client_us"] - means["stages_us"]["compute"]
    return f"{outside_us:,.0f} us, {outside_us / means['client_us']:.0%}"
