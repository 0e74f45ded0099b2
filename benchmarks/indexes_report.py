"""The report of benchmarks.indexes: tables on the terminal, and a Markdown page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import plots, tables
from benchmarks.figures import Bars, Table

#: Ways to answer a query: in the server, with the vector and FAISS here, and the vector alone.
SHARED, GRAPH, EXACT, ENCODE = (
    "search_index, the index in the server",
    "encode, then FAISS's graph in this process",
    "encode, then exact FAISS in this process",
    "encode alone",
)
#: The load average per core before the run above which other programs were at work.
BUSY_PER_CORE = 0.25
#: The targets.
MORE_MS, LEAST_RECALL = 0.3, 0.98


def write(results: dict[str, Any], page: Path, plot_folder: Path, console: Console) -> None:
    """Print the tables, and write the page with its plots."""
    machine = results["machine"]
    lines = ["# Benchmarks of vector indexes", "", _how(results), ""]
    if (machine["load_average_before"] or 0) > BUSY_PER_CORE * (machine["cores"] or 1):
        lines += ["**The machine was busy with other work: measure again.**", ""]
    for title, table in _tables(results).items():
        lines += [f"## {title}", "", *tables.markdown(table)]
        console.print(tables.rich(title, table))
    for plot in _plots(results):
        file = plots.draw(plot, plot_folder)
        lines += [f"![{plot.title}, {plot.unit}]({file.parent.name}/{file.name})", ""]
    page.write_text("\n".join(lines), encoding="utf-8")


def _how(results: dict[str, Any]) -> str:
    machine, (count, dimension) = results["machine"], results["vectors"]
    return (
        f"Made by `python -m benchmarks.indexes`; do not edit. {count:,} paragraphs of Python packages' "
        f'docstrings, {dimension} dimensions, `metric="l2"`, `kind="auto"`, which takes '
        f"{results['kind']}; {results['queries']} short questions. Each goes to all ways by turns, except "
        "to exact search, which comes last, since its threads spin for a while. The index in this process "
        "is FAISS's IndexHNSWFlat with the same links and build effort, at the least efSearch that finds "
        f"as much as ours, {results['own_effort']}. "
        f"Measured on {machine['cpu']}, {machine['cores']} cores, load average before "
        f"{machine['load_average_before']}, commit {machine['commit']}."
    )


def _tables(results: dict[str, Any]) -> dict[str, Table]:
    return {
        "What is aimed for": _aims(results),
        "A query": _queries(results),
        "Building": _building(results),
        f"Memory of {results['workers']} workers": _memory(results),
    }


def _more_ms(results: dict[str, Any]) -> float:
    p50 = results["p50_ms"]
    return float(p50[SHARED] - p50[GRAPH])


def _aims(results: dict[str, Any]) -> Table:
    recall, memory = results["recall_at_10"][SHARED], results["workers_mb"]
    server = results["server_mb"]
    less = (memory["own"] + server["before"]) / (memory["shared"] + server["after"])
    workers = f"memory of {results['workers']} workers and the server, against an index in each worker"
    rows = [
        [
            "a query's p50 over FAISS's in the process",
            f"at most {MORE_MS} ms more",
            f"{_more_ms(results):+.2f} ms",
        ],
        ["recall at 10 of `auto`", f"at least {LEAST_RECALL}", f"{recall:.4f}"],
        [workers, "", f"{less:.2f}x less"],
    ]
    return Table(["", "asked", "got"], rows, ("got",))


def _queries(results: dict[str, Any]) -> Table:
    recall = results["recall_at_10"]
    rows = [
        [way, f"{p50:.2f}", f"{recall[way]:.4f}" if way in recall else ""]
        for way, p50 in results["p50_ms"].items()
    ]
    return Table(["way", "p50, ms", "recall at 10"], rows)


def _building(results: dict[str, Any]) -> Table:
    rows = [
        ["sent to the server, and searched exactly from then on", f"{results['sent_s']:.1f}"],
        ["the server's graph is there, and its recall measured", f"{results['built_s']:.1f}"],
        ["FAISS's graph in this process, on all cores", f"{results['own_built_s']:.1f}"],
    ]
    return Table(["", "seconds"], rows)


def _memory(results: dict[str, Any]) -> Table:
    workers, server, memory = results["workers"], results["server_mb"], results["workers_mb"]
    kinds = {
        "one index in the server": (memory["shared"], server["after"]),
        "an index in each worker": (memory["own"], server["before"]),
    }
    rows = [[kind, *(f"{mb:,.0f}" for mb in (*each, sum(each)))] for kind, each in kinds.items()]
    return Table(["", f"{workers} workers, MB", "the server, MB", "all, MB"], rows, ("all, MB",))


def _plots(results: dict[str, Any]) -> list[Bars]:
    server, memory = results["server_mb"], results["workers_mb"]
    groups = ["workers", "server", "all"]
    shared, own = (memory["shared"], server["after"]), (memory["own"], server["before"])
    p50 = results["p50_ms"]
    return [
        Bars(
            "indexes-memory", f"{results['workers']} workers that search", "MB", groups,
            {"one index in the server": [*shared, sum(shared)], "an index in each": [*own, sum(own)]},
        ),
        Bars(
            "indexes-query", f"A query over {results['vectors'][0]:,} vectors, p50", "ms", ["p50"],
            {way: [p50[way]] for way in (SHARED, GRAPH, EXACT, ENCODE)},
        ),
    ]  # fmt: skip
