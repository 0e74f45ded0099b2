"""A role is found at the end of a model's name, and in the name of a prompt."""

from __future__ import annotations

import pytest

from embedshare import roles
from embedshare.roles import DOCUMENT, QUERY, Role


@pytest.mark.parametrize(
    ("name", "base", "role"),
    [
        ("bge-query", "bge", QUERY),
        ("bge-passage", "bge", DOCUMENT),
        ("org/bge-m3-document", "org/bge-m3", DOCUMENT),
        ("bge", "bge", None),
        ("bge-queries", "bge-queries", None),
        ("bge-query:latest", "bge-query:latest", None),
        ("-query", "-query", None),
        ("", "", None),
        ("a-query-passage", "a-query", DOCUMENT),
    ],
)
def test_a_name_is_split_at_its_role(name: str, base: str, role: Role | None) -> None:
    assert roles.split(name) == (base, role)


def test_prompts_of_queries_and_documents_are_known() -> None:
    names = ("query", "document", "passage", "corpus", "classification", None, "")
    assert [roles.of_prompt(name) for name in names] == [QUERY, *[DOCUMENT] * 3, None, None, None]
