"""The report: tables on the terminal, and a Markdown page with plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import rows, tables
from benchmarks.figures import Section, Table
from benchmarks.rows import families

#: The load average per core before the run above which other programs were at work.
BUSY_PER_CORE = 0.25


def sections(results: dict[str, Any]) -> list[Section]:
    """The measured rows, in the order of the run."""
    return [row.section(results["rows"][row.KEY]) for row in rows.ALL if row.KEY in results["rows"]]


def show(results: dict[str, Any], console: Console) -> None:
    """Print every table, and then the ratios alone."""
    for section in sections(results):
        for table in section.tables:
            console.print(tables.rich(section.title, table))
    table, note = in_short(results)
    console.print(tables.rich("In short", table))
    console.print(note)


def in_short(results: dict[str, Any]) -> tuple[Table, str]:
    """Return every section's figures, with the quality of calls that return vectors, and a note on it."""
    columns, emphasised = ["embedshare", "in this run"], ("in this run",)
    lines = [(*line, section.embeds) for section in sections(results) for line in section.headlines]
    quality = results["rows"].get("quality")
    if quality is None:
        note = "The quality of the vectors was not measured in this run."
        return Table(columns, [[what, figure] for what, figure, _ in lines], emphasised), note
    cosine = min(quality["smallest_cosine"], quality["smallest_query_cosine"])
    beside = f"{cosine:.5f}, {quality['equal_neighbours']:.1%}"
    note = (
        f"Each figure has the quality of the vectors in the same run. It is the smallest cosine against "
        f"SentenceTransformer in float32 over {quality['texts']:,} texts and {quality['queries']:,} queries "
        f"({cosine:.6f}), and the share of equal neighbours among the queries' top {quality['neighbours']} "
        f"({quality['equal_neighbours']:.2%})."
    )
    shown = [[what, figure, beside if embeds else ""] for what, figure, embeds in lines]
    return Table([*columns, "quality"], shown, emphasised), note


def write(results: dict[str, Any], page: Path, pictures: Path) -> None:
    """Write the page and its plots; `pictures` is a folder next to or under the page's."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `python -m benchmarks` (needs `pip install -r requirements-bench.txt`); do not edit. "
        "One run on one machine measured everything here, competitors by turns. Absolute figures depend "
        "on the machine and its other work: compare the ratios. Of a GPU, by "
        "`python -m benchmarks.gpu`: [benchmarks-gpu.md](benchmarks-gpu.md). "
        "Vector indexes: [benchmarks-indexes.md](benchmarks-indexes.md), by `python -m benchmarks.indexes`. "
        "Families of models: [models.md](models.md), by `python -m benchmarks --only families`.",
        "",
        *_about(results),
        "## In short",
        "",
    ]
    short, note = in_short(results)
    lines += [*tables.markdown(short), note, ""]
    for section in sections(results):
        lines += [f"## {section.title}", "", section.how, ""]
        for table in section.tables:
            lines += tables.markdown(table)
        for plot in section.plots:
            from benchmarks import plots  # matplotlib, which rows without plots do not need

            file = plots.draw(plot, pictures)
            lines += [f"![{plot.title}]({file.relative_to(page.parent).as_posix()})", ""]
    page.write_text("\n".join(lines), encoding="utf-8")


def write_headlines(results: dict[str, Any], readme: Path) -> None:
    """Put the ratios between the README's `figures` marks, with the machine that they were measured on."""
    machine, when = results["machine"], results["when"]
    short, note = in_short(results)
    lines = [
        f"One run of `python -m benchmarks`, {when}, {machine['cpu']}, {machine['cores']} cores, "
        f"{results['server']}. How each was measured, and more: [docs/benchmarks.md](docs/benchmarks.md).",
        "",
        *tables.markdown(short),
        note,
        "",
    ]
    _put(readme, "figures", lines)


def write_families(results: dict[str, Any], page: Path) -> None:
    """Put the table of families between the page's `families` marks, with its machine."""
    machine, data = results["machine"], results["rows"][families.KEY]
    versions = ", ".join(
        f"{name} {machine['versions'][name]}"
        for name in ("sentence-transformers", "transformers", "torch", "openvino")
    )
    lines = [
        f"One run of `python -m benchmarks --only families`, {results['when']}, {machine['cpu']}, "
        f"{machine['cores']} cores, {versions}.",
        families.section(data).how,
        "",
        *tables.markdown(families.table(data)),
        *(line for note in _notes(results) for line in (f"**{note}**", "")),
    ]
    _put(page, "families", lines)


def _put(page: Path, mark: str, lines: list[str]) -> None:
    """Replace the lines between the page's marks of that name."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    page.write_text(before + begin + "\n".join(lines) + end + after, encoding="utf-8")


def _about(results: dict[str, Any]) -> list[str]:
    machine = results["machine"]
    versions = [f"{name} {version}" for name, version in machine["versions"].items() if version]
    peers = [
        f"{environment}: " + ", ".join(f"{name} {version}" for name, version in versions_there.items())
        for environment, versions_there in results["peer_versions"].items()
    ]
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
        "the peers' environments": "; ".join(peers),
        "server": results.get("server"),
        "commit": commit,
        "run": f"{results['when']}, {results['plan']['name']}, {results['took_s'] / 60:.1f} minutes",
        "load average before": machine["load_average_before"],
    }
    table = Table(
        ["measured on", ""], [[name, str(value)] for name, value in shown.items() if value is not None]
    )
    left_out = [f"{what}: {', '.join(names)}" for what, names in results["left_out"].items() if names]
    notes = [*_notes(results), *([f"Left out of this run: {'; '.join(left_out)}."] if left_out else [])]
    return [*tables.markdown(table), *(line for note in notes for line in (f"**{note}**", ""))]


def _notes(results: dict[str, Any]) -> list[str]:
    """Return notes on the run, for the top of its figures."""
    machine = results["machine"]
    notes = []
    if results["plan"]["name"] == "quick":
        notes.append("This was a quick run, with one short round of everything: to see that it works.")
    if (machine["load_average_before"] or 0) > BUSY_PER_CORE * (machine["cores"] or 1):
        notes.append(
            "The machine was busy with other work when this run began. That slows competitors unequally, so "
            "these ratios are not valid: measure again on an idle machine."
        )
    return notes
