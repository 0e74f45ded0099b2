"""The figures as people read them: tables on the terminal, and a Markdown page with plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks import plots, rows
from benchmarks.figures import Section, Table

#: A load average of more than this for each core, before the run, is somebody else's work.
BUSY_PER_CORE = 0.25


def sections(results: dict[str, Any]) -> list[Section]:
    """What was measured, in the order of the run."""
    return [row.section(results["rows"][row.KEY]) for row in rows.ALL if row.KEY in results["rows"]]


def show(results: dict[str, Any], console: Console) -> None:
    """Print every table, then the ratios alone."""
    for section in sections(results):
        for table in section.tables:
            console.print(_rich(section.title, table))
    headlines = [list(line) for section in sections(results) for line in section.headlines]
    console.print(_rich("In short", Table(["embedshare", "in this run"], headlines, ("in this run",))))


def write(results: dict[str, Any], page: Path, pictures: Path) -> None:
    """Write the page and its plots; `pictures` is a folder beside or under the page's."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `python -m benchmarks` (needs `pip install -r requirements-bench.txt`); do not edit. "
        "Everything here was measured in one run, on one machine, competitors by turns. Absolute figures "
        "move with the machine and with what else it does: the ratios are what to compare.",
        "",
        *_about(results),
        "## In short",
        "",
    ]
    found = sections(results)
    lines += _markdown(
        Table(
            ["embedshare", "in this run"],
            [list(line) for one in found for line in one.headlines],
            ("in this run",),
        )
    )
    for section in found:
        lines += [f"## {section.title}", "", section.how, ""]
        for table in section.tables:
            lines += _markdown(table)
        for bars in section.plots:
            file = plots.draw(bars, pictures)
            lines += [f"![{bars.title}, {bars.unit}]({file.relative_to(page.parent).as_posix()})", ""]
    page.write_text("\n".join(lines), encoding="utf-8")


def write_headlines(results: dict[str, Any], readme: Path) -> None:
    """Put the ratios between the README's `figures` marks, with where they were measured."""
    machine, when = results["machine"], results["when"]
    headlines = [list(line) for section in sections(results) for line in section.headlines]
    lines = [
        f"One run of `python -m benchmarks`, {when}, {machine['cpu']}, {machine['cores']} cores, "
        f"{results['server']}. How each was measured, and more: [docs/benchmarks.md](docs/benchmarks.md).",
        "",
        *_markdown(Table(["embedshare", "in this run"], headlines, ("in this run",))),
    ]
    before, begin, rest = readme.read_text(encoding="utf-8").partition("<!-- figures -->\n")
    _, end, after = rest.partition("<!-- /figures -->")
    readme.write_text(before + begin + "\n".join(lines) + end + after, encoding="utf-8")


def _about(results: dict[str, Any]) -> list[str]:
    machine = results["machine"]
    versions = [f"{name} {version}" for name, version in machine["versions"].items() if version]
    peers = [f"{name} {version}" for name, version in results["peer_versions"].items()]
    usable = machine["cores_usable"]
    cores = f"{machine['cores']} cores" + (
        f" ({usable} usable)" if usable not in (None, machine["cores"]) else ""
    )
    commit = machine["commit"] + (
        " with uncommitted changes" if machine["uncommitted_changes_in_src"] else ""
    )
    shown = {
        "processor": f"{machine['cpu']}, {cores}",
        "its features": ", ".join(machine["cpu_features"]),
        "memory": f"{machine['memory_gib']} GiB",
        "system": f"{machine['system']}, Python {machine['python']}",
        "ours": ", ".join(versions),
        "the peers' environment": ", ".join(peers),
        "server": results.get("server"),
        "commit": commit,
        "run": f"{results['when']}, {results['plan']['name']}, {results['took_s'] / 60:.1f} minutes",
        "load average before": machine["load_average_before"],
    }
    table = Table(
        ["measured on", ""], [[name, str(value)] for name, value in shown.items() if value is not None]
    )
    quick = "This was a quick run: one short round of everything, to see that it works." * (
        results["plan"]["name"] == "quick"
    )
    notes = [quick] if quick else []
    if (machine["load_average_before"] or 0) > BUSY_PER_CORE * (machine["cores"] or 1):
        notes.append(
            "The machine was busy with other work when this run began. That does not slow all competitors "
            "alike, so these ratios do not stand: measure again on a quiet machine."
        )
    return [*_markdown(table), *(line for note in notes for line in (f"**{note}**", ""))]


def _markdown(table: Table) -> list[str]:
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for row in table.rows:
        cells = [
            f"**{cell}**" if column in table.emphasised and cell else cell
            for column, cell in zip(table.columns, row, strict=True)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _rich(title: str, table: Table) -> RichTable:
    shown = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in table.columns:
        shown.add_column(column, style="bold green" if column in table.emphasised else None)
    for row in table.rows:
        shown.add_row(*row)
    return shown
