"""One run, from the arguments to the report.

`python -m benchmarks` writes benchmarks/results.json, docs/benchmarks.md, docs/benchmarks/*.svg and the
README's figures; `python -m benchmarks --only families` writes benchmarks/families.json and the table of
docs/models.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import corpus, machine, paths, peers, plan, report, rows
from benchmarks.bench import OURS, Bench
from benchmarks.callers import EmbedshareCaller
from benchmarks.rows import families


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; return 0 if everything was measured, else raise."""
    given = _parser().parse_args(arguments)
    out = given.output
    of_families = given.only == [families.KEY] and not out
    if given.only and not out and not given.render and not of_families:
        _parser().error("--only needs --output: the project's own report holds all rows")
    console = Console()
    results_file = (out or paths.HERE) / ("families.json" if of_families else "results.json")
    if given.render:
        results = json.loads(results_file.read_text(encoding="utf-8"))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SIGTERM also stops the servers
        results = measure(plan.QUICK if given.quick else plan.FULL, given.only, console)
        results_file.parent.mkdir(parents=True, exist_ok=True)
        results_file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = (out or paths.DOCS) / ("models.md" if of_families else "benchmarks.md")
    page.parent.mkdir(parents=True, exist_ok=True)
    if of_families:
        report.write_families(results, page)
    else:
        report.write(results, page, page.with_suffix(""))
    if not out and not of_families:
        report.write_headlines(results, paths.ROOT / "README.md")
    report.show(results, console)
    console.print(f"{results_file}\n{page}")
    return 0


def measure(size: plan.Plan, only: list[str] | None, console: Console) -> dict[str, Any]:
    """Measure every row of `only`, or all of them, with one set of servers."""
    wanted = [row for row in rows.ALL if (row.KEY in only if only else row.KEY not in size.left_out)]
    about = machine.describe()
    paths.import_from_src()
    from embedshare.engine import weights

    called = any(row.KEY not in rows.WITHOUT_PEERS for row in wanted)
    rivals = [
        peer
        for peer in peers.ALL
        if called and peer.supported and (not size.peers or peer.name in size.peers)
    ]
    environments = peers.environments(rivals)
    progress = Progress(
        TextColumn("{task.description}", table_column=None),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    with progress, tempfile.TemporaryDirectory(prefix="embedshare-bench-") as folder:
        task = progress.add_task("the peers' environments", total=None)
        for environment, needs in environments.items():
            environment.ensure(needs)
        began = time.monotonic()

        def step(text: str) -> None:
            if text:
                progress.update(task, description=text)
                if not console.is_terminal:  # a bar cannot move in a log
                    console.print(f"{time.monotonic() - began:6.1f} s  {text}")
            else:
                progress.advance(task)

        when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        model = weights.find("all-MiniLM-L6-v2")
        text = corpus.load()
        with Bench(size, text, Path(folder), model, rivals, step) as bench:
            progress.update(task, total=sum(row.steps(bench) for row in wanted))
            measured = {row.KEY: row.measure(bench) for row in wanted}
            server = _server(bench)
        took_s = time.monotonic() - began
    return {
        "when": when,
        "took_s": took_s,
        "plan": dataclasses.asdict(size),
        "machine": about,
        "peer_versions": {
            environment.name: environment.versions(needs) for environment, needs in environments.items()
        },
        "left_out": {
            "rows": [row.KEY for row in rows.ALL if row not in wanted],
            "peers": [peer.name for peer in peers.ALL if peer not in rivals],
        },
        "server": server,
        "rows": measured,
    }


def _server(bench: Bench) -> str | None:
    """Return our server's own description: the runtime and precision that its default settings chose."""
    server = bench.server(OURS)
    caller = server.caller
    if not server.running or not isinstance(caller, EmbedshareCaller):
        return None
    session = caller.connect()
    session.one("What are you?")
    described = session.client.describe()
    session.close()
    if described is None:
        return None
    return f"{described.model_name}, {described.runtime} {described.dtype} on {described.device}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="2 minutes at most, to see that it works: some rows and peers are left out",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write results, page and plots there instead"
    )
    parser.add_argument("--only", nargs="+", choices=[row.KEY for row in rows.ALL], help="these rows alone")
    parser.add_argument("--render", action="store_true", help="write the report again from results.json")
    return parser
