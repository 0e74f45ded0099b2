"""(f) The same over HTTP on both sides: our web worker against gunicorn's dirty workers."""

from __future__ import annotations

from typing import Any

from benchmarks import agreement
from benchmarks.bench import Bench
from benchmarks.figures import Section, shown_ratio
from benchmarks.peers import gunicorn_dirty
from benchmarks.rows import contest

KEY = "http"
OURS = "embedshare app.py"
RIVAL = gunicorn_dirty.PEER.name


def _rivals(bench: Bench) -> list[str]:
    return [name for name in bench.competitors() if name == RIVAL]


def steps(bench: Bench) -> int:
    return 1 + contest.steps(bench, 1 + len(_rivals(bench)), bench.plan.clients[-1:])


def measure(bench: Bench) -> dict[str, Any]:
    with bench.step("HTTP: the servers' vectors"):
        agreement.check(bench, ["app.py", *_rivals(bench)])
    fleets = {OURS: bench.fleet(bench.running("app.py").caller)}
    fleets |= {name: bench.fleet(bench.running(name).caller) for name in _rivals(bench)}
    results = contest.run(bench, "HTTP", fleets, bench.plan.clients[-1:], bench.plan.window_s)
    return {"window_s": bench.plan.window_s, "rounds": bench.plan.rounds, "results": results}


def section(data: dict[str, Any]) -> Section:
    last = data["results"][-1]
    return Section(
        "POST /embed over HTTP",
        "One text a request, on kept-alive connections, to one of our web workers (`src/app.py`, default "
        "settings) over the model server, and to the gunicorn of the section before. "
        f"{data['rounds']} x {data['window_s']:g} s each, by turns. {contest.LOAD_CPU}",
        [contest.table(data["results"])],
        [
            (f"POST /embed from {last['clients']} clients, against {name}", shown_ratio(ratio))
            for name, ratio in last["rate_ratio"].items()
        ],
    )
