"""Tables for a page and for a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table as RichTable

from benchmarks.figures import Table


def markdown(table: Table) -> list[str]:
    """Return the table's lines in Markdown, and an empty one."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for row in table.rows:
        cells = [
            f"**{cell}**" if column in table.emphasised and cell else cell
            for column, cell in zip(table.columns, row, strict=True)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def rich(title: str, table: Table) -> RichTable:
    """Return the table for a terminal."""
    shown = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in table.columns:
        shown.add_column(column, style="bold green" if column in table.emphasised else None)
    for row in table.rows:
        shown.add_row(*row)
    return shown
