"""The models that rows of the database describe, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from embedshare.errors import InvalidSetting
from embedshare.models.sources import database
from embedshare.models.spec import ModelSpec


def test_a_value_is_of_its_type_or_its_text() -> None:
    typed = {
        "id": "bge", "name": "org/bge", "aliases": ["small", "*"], "dimensions": 384, "preload": True,
        "pinned": False, "keep_alive_s": 2.5, "runtime": "torch", "max_batch_size": 8, "default": False,
    }  # fmt: skip
    texts = {
        "dimensions": "384", "preload": "true", "pinned": "false", "keep_alive_s": "2.5",
        "max_batch_size": "8",
    }  # fmt: skip
    expected = ModelSpec(
        id="bge", name="org/bge", aliases=("small", "*"), dimensions=384, preload=True, keep_alive_s=2.5,
        runtime="torch", max_batch_size=8,
    )  # fmt: skip
    assert database.registry([typed]).specs == database.registry([typed | texts]).specs == (expected,)
    assert database.registry([{"id": "no"}]).specs == (ModelSpec(id="no", name="no"),)


def test_the_default_is_the_marked_one_or_the_first() -> None:
    rows: list[dict[str, Any]] = [{"id": "one"}, {"id": "two"}]
    assert database.registry(rows).default.id == "one"
    rows[1]["default"] = True
    assert database.registry(rows).default.id == "two"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"id": "a", "dimensions": 0}], "models/a: dimensions is 0; allowed: a whole number"),
        ([{"id": "a", "dimensions": [1]}], "models/a: dimensions is [1]; allowed: text, a number"),
        ([{"id": "a", "dimensions": None}], "models/a: dimensions is None; allowed: text, a number"),
        ([{"id": "a", "aliases": "b"}], "models/a: aliases is 'b'; allowed: a list of names"),
        ([{"id": "a", "preload": "yes"}], "models/a: preload is 'yes'; allowed: true or false"),
        ([{"id": "a", "runtime": "fast"}], "models/a: runtime is 'fast'; allowed: "),
        ([{"id": "a", "dimension": 3}], "models/a: the field is 'dimension'; allowed: id, name, aliases"),
        ([{"id": "a", "trust_remote_code": True}], "models/a: the field is 'trust_remote_code'; allowed: id"),
        ([{"id": "a", "": 3}], "models/a: the field is ''; allowed: id, name, aliases"),
        ([{"id": ""}], "models/: id is ''; allowed: a printable name"),
        ([{"id": 3}], "models/: id is 3; allowed: a name for callers, of 1 to 240 characters"),
        ([{"id": "x" * 241}], "models/: id is 'xxx"),
        ([{}], "models/: id is None"),
        ([{"id": "a"}, {"id": "b", "aliases": ["a"]}], "models/b: the name is 'a'; allowed: each id"),
        ([{"id": "a", "aliases": ["a"]}], "models/a: the name is 'a'; allowed: each id and alias once"),
        (
            [{"id": "a", "default": True}, {"id": "b", "default": True}],
            "models/b: default is 'true'; allowed: true for one model (a has it too)",
        ),
    ],
)  # fmt: skip
def test_a_fault_names_the_model_the_field_and_what_is_allowed(rows: list[Any], says: str) -> None:
    with pytest.raises(InvalidSetting) as raised:
        database.registry(rows)
    assert raised.value.message.startswith(says)
    assert raised.value.fields["name"].startswith("models/")


def test_a_row_replaces_the_one_of_its_id_or_comes_last() -> None:
    rows = [{"id": "one", "default": True}, {"id": "two"}]
    assert database.placed(rows, {"id": "three"}) == [*rows, {"id": "three"}]
    assert database.placed(rows, {"id": "one", "pinned": True}) == [
        {"id": "one", "pinned": True},
        {"id": "two"},
    ]


def test_a_new_default_takes_it_from_the_old() -> None:
    rows = [{"id": "one", "default": True}, {"id": "two"}]
    assert database.placed(rows, {"id": "two", "default": True}) == [
        {"id": "one"},
        {"id": "two", "default": True},
    ]
    assert rows[0] == {"id": "one", "default": True}
