"""Writes docs/settings.md from the declarations."""

from __future__ import annotations

import dataclasses
from typing import Any

from embedshare.settings.declaration import Declaration, Section, declared, written
from embedshare.settings.settings import SECTIONS

_HEAD = (
    "# Settings\n"
    "Each setting is a variable of the environment, which takes precedence over a `.env` file in the working "
    "directory. A value that is not allowed stops the start; the error has the setting's name and what is "
    "allowed. An empty cell means that the default is empty, or derived as the meaning says.\n\n"
    "`python -m embedshare.settings docs/settings.md` writes this file from the code."
)


def markdown() -> str:
    """The whole document."""
    return "\n\n".join([_HEAD, *(_table(section) for section in SECTIONS.values())]) + "\n"


def _table(section: type[Section]) -> str:
    defaults = {field.name: field.default for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    lines = [_row(declaration, defaults[field]) for field, declaration in declared(section).items()]
    return "\n".join([f"## {section.TITLE}", "| setting | default | meaning |", "|---|---|---|", *lines])


def _row(declaration: Declaration, default: Any) -> str:
    shown = declaration.shown or ("" if default is None else written(default))
    return f"| `{declaration.name}` | {f'`{shown}`' if shown else ''} | {declaration.meaning} |"
