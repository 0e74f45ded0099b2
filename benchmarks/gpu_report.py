"""The report of benchmarks.gpu: tables on the terminal, and a Markdown page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import tables
from benchmarks.figures import Table, shown_ratio

OURS = "embedshare"
DEFAULT = "SentenceTransformer, defaults"
TUNED = "SentenceTransformer, half precision, batch_size=256"
#: The load average per core before the run above which other programs were at work.
BUSY_PER_CORE = 0.25
#: The targets: the ratios on short texts, and one query on the device.
ASKED_DEFAULT, ASKED_TUNED, ASKED_QUERY_MS = 5.0, 2.0, 1.2


def write(results: dict[str, Any], page: Path, console: Console) -> None:
    """Print the tables, and write the page."""
    lines = ["# Benchmarks on a GPU", "", _device(results), "", _how(results), "", *_about(results)]
    machine = results["machine"]
    if (machine["load_average_before"] or 0) > BUSY_PER_CORE * (machine["cores"] or 1):
        lines += ["**The machine was busy with other work: the ratios do not stand. Measure again.**", ""]
    for title, table in _tables(results).items():
        lines += [f"## {title}", "", *tables.markdown(table)]
        console.print(tables.rich(title, table))
    page.write_text("\n".join(lines), encoding="utf-8")


def _device(results: dict[str, Any]) -> str:
    device, machine = results["device"], results["machine"]
    quick = " A quick run, with few and short rounds." if results["plan"]["name"] == "quick" else ""
    if device["kind"] != "cuda":
        return (
            f"**This run used a CPU ({machine['cpu']}, {machine['cores']} cores), since no GPU was "
            "available. These are not a GPU's figures: they only show that the program runs.** "
            "`python -m benchmarks.gpu` on a machine with one replaces this page." + quick
        )
    return (
        f"This run used a GPU: {device['name']}, {device['memory_gib']} GiB, compute capability "
        f"{device['capability']}, CUDA {device['cuda']}." + quick
    )


def _how(results: dict[str, Any]) -> str:
    gpu = results["device"]["kind"] == "cuda"
    rounds = results["plan"]["rounds"]
    times = "once" if rounds == 1 else f"{rounds} times"
    return (
        "Made by `python -m benchmarks.gpu`; do not edit. The model server runs with its default settings "
        "and is called through its client, from one process; SentenceTransformer runs in the calling "
        "process. "
        f"All in one run, by turns, {times} each, after warming up; rates are "
        "medians, and a ratio's range is that of the rounds. "
        + (
            "SentenceTransformer is tuned to `float16`."
            if gpu
            else "`bfloat16` replaces `float16`, and the processes' own memory (USS) the GPU's."
        )
    )


def _tables(results: dict[str, Any]) -> dict[str, Table]:
    gpu = results["device"]["kind"] == "cuda"
    return {
        "What is aimed for": _aims(results),
        "Bulk: one `encode` of many texts": _bulk(results["bulk"]),
        "One query at a time": _query(results["query"]),
        "GPU memory" if gpu else "Memory": _memory(results["memory"]),
    }


def _aims(results: dict[str, Any]) -> Table:
    shortest = min(results["bulk"], key=lambda row: int(row["tokens"]))
    p50_ms = results["query"]["latency_ms"][OURS]["p50"]
    found = []
    for name, asked in ((DEFAULT, ASKED_DEFAULT), (TUNED, ASKED_TUNED)):
        ratio = shortest["ratio"][name]
        what = f"texts of {shortest['tokens']} tokens/s, against {name}"
        found.append(([what, f"{asked:g}x or more", shown_ratio(ratio)], ratio["median"] >= asked))
    found.append(
        (["p50 of one query", f"under {ASKED_QUERY_MS} ms", f"{p50_ms:.2f} ms"], p50_ms < ASKED_QUERY_MS)
    )
    gpu = results["device"]["kind"] == "cuda"
    rows = [[*cells, ("yes" if met else "no") if gpu else "not a GPU"] for cells, met in found]
    return Table(["aim, on a GPU", "asked", "in this run", "met"], rows, ("in this run",))


def _bulk(bulk: list[dict[str, Any]]) -> Table:
    rows = [
        [
            f"{row['texts']:,} of {row['tokens']} tokens",
            name,
            f"{rate:,.0f}",
            f"{rate * row['tokens']:,.0f}",
            shown_ratio(row["ratio"][name]) if name in row["ratio"] else "",
        ]
        for row in bulk
        for name, rate in row["texts_per_s"].items()
    ]
    faster = "embedshare is faster by"
    return Table(["texts", "where", "texts/s", "tokens/s", faster], rows, (faster,))


def _query(query: dict[str, Any]) -> Table:
    rows = [
        [
            name,
            f"{latency['p50']:.2f}",
            f"{latency['p99']:.2f}",
            shown_ratio(query["ratio"][name]) if name in query["ratio"] else "",
        ]
        for name, latency in query["latency_ms"].items()
    ]
    faster = "embedshare is faster by"
    return Table(["where", "p50, ms", "p99, ms", faster], rows, (faster,))


def _memory(memory: list[dict[str, Any]]) -> Table:
    rows = [
        [
            str(row["workers"]),
            f"{row['shared_mb']:,.0f}",
            f"{row['alone_mb']:,.0f}",
            f"{row['alone_mb'] / row['shared_mb']:.2f}x",
        ]
        for row in memory
    ]
    return Table(
        ["workers", "1 server, shared, MB", "a model in each worker, MB", "less by"], rows, ("less by",)
    )


def _about(results: dict[str, Any]) -> list[str]:
    machine = results["machine"]
    versions = [f"{name} {version}" for name, version in machine["versions"].items() if version]
    changed = " with uncommitted changes" if machine["uncommitted_changes_in_src"] else ""
    shown = {
        "processor": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        **{f"computes, {name}": where for name, where in results["computes"].items()},
        "system": f"{machine['system']}, Python {machine['python']}",
        "versions": ", ".join(versions),
        "commit": machine["commit"] + changed,
        "run": f"{results['when']}, {results['plan']['name']}, {results['took_s'] / 60:.1f} minutes",
        "load average before": str(machine["load_average_before"]),
    }
    return tables.markdown(Table(["measured on", ""], [list(pair) for pair in shown.items()]))
