"""The purpose of a request's texts, such as query or document: it chooses the model's prompt.

Clients of an API without a field for it say it at the end of the model's name: `bge-query`, `bge-passage`.
"""

from __future__ import annotations

from typing import NamedTuple


class Role(NamedTuple):
    """A purpose of texts."""

    task: str
    prompt_names: tuple[str, ...]
    """The prompts for it; the first that the model has counts, else its default one."""


QUERY = Role("query", ("query",))
DOCUMENT = Role("document", ("document", "passage", "corpus"))
CLASSIFICATION = Role("classification", ("classification", "Classification"))
CLUSTERING = Role("clustering", ("clustering", "Clustering"))
_SUFFIXES = {"-query": QUERY, "-passage": DOCUMENT, "-document": DOCUMENT}


def split(name: str) -> tuple[str, Role | None]:
    """A model's name without the role at its end, and that role, if there is one."""
    for suffix, role in _SUFFIXES.items():
        if name.endswith(suffix) and len(name) > len(suffix):
            return name.removesuffix(suffix), role
    return name, None


def of_prompt(name: str | None) -> Role | None:
    """The role that a prompt's name stands for."""
    return next((role for role in (QUERY, DOCUMENT) if name in role.prompt_names), None)
