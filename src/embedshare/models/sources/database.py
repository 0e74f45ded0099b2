"""The models in the settings' database: a row for each, with the fields of the file of models.

All but `trust_remote_code`: who may change settings may not have code run, which only the environment allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embedshare.errors import InvalidSetting
from embedshare.models.registry import Registry
from embedshare.models.sources import fields
from embedshare.models.spec import ModelSpec

#: The longest id of a row, in characters: MySQL's longest key that holds any character, less `models/`.
MAX_ID = 240
_FIELDS = frozenset(fields.FIELDS) - {"trust_remote_code"}
_ALLOWED = ", ".join((*(field for field in fields.FIELDS if field in _FIELDS), "default"))


def registry(rows: Sequence[Mapping[str, Any]]) -> Registry:
    """The models of these rows, of which there is at least one.

    A value is JSON of the field's type, or its text. Raises InvalidSetting with the row's id.
    """
    specs = [_spec(row) for row in rows]
    names: set[str] = set()
    for spec in specs:
        for name in (spec.id, *spec.aliases):
            if name in names:
                raise _invalid(spec.id, "the name", name, "each id and alias once")
            names.add(name)
    defaults = [spec.id for spec, row in zip(specs, rows, strict=True) if _is_default(spec.id, row)]
    if len(defaults) > 1:
        raise _invalid(defaults[1], "default", "true", f"true for one model ({defaults[0]} has it too)")
    return Registry(specs, *defaults)


def placed(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """`rows` with `row` in place of the one with its id, or at the end. A new default takes it from the old.

    Raises InvalidSetting.
    """
    others = [dict(one) for one in rows]
    if _is_default(str(row.get("id")), row):
        for one in others:
            one.pop("default", None)
    for number, one in enumerate(others):
        if one["id"] == row.get("id"):
            return [*others[:number], row, *others[number + 1 :]]
    return [*others, row]


def _spec(row: Mapping[str, Any]) -> ModelSpec:
    spec_id = row.get("id")
    if not isinstance(spec_id, str) or len(spec_id) > MAX_ID:
        raise _invalid("", "id", spec_id, f"a name for callers, of 1 to {MAX_ID} characters")
    values: dict[str, Any] = {}
    for key, given in row.items():
        if key == "default":
            continue
        if key not in _FIELDS:
            raise _invalid(spec_id, "the field", key, _ALLOWED)
        values[key] = _value(spec_id, key, given)
    return ModelSpec(**{"name": spec_id, **values})


def _value(spec_id: str, key: str, given: Any) -> Any:
    if key == "aliases":
        if not isinstance(given, list):
            raise _invalid(spec_id, key, given, "a list of names")
        return tuple(_read(spec_id, key, one) for one in given)
    return _read(spec_id, key, given)


def _read(spec_id: str, key: str, given: Any) -> Any:
    try:
        return fields.value_of(fields.FIELDS[key], _text(given))
    except ValueError as error:
        raise _invalid(spec_id, key, given, str(error)) from None


def _is_default(spec_id: str, row: Mapping[str, Any]) -> bool:
    try:
        return fields.boolean(_text(row.get("default", False)))
    except ValueError as error:
        raise _invalid(spec_id, "default", row["default"], str(error)) from None


def _text(given: Any) -> str:
    if isinstance(given, bool):
        return str(given).lower()
    if not isinstance(given, str | int | float):
        raise ValueError("text, a number, true or false")  # the caller says of what
    return str(given)


def _invalid(spec_id: str, key: str, given: Any, allowed: str) -> InvalidSetting:
    name, shown = f"models/{spec_id[:MAX_ID]}", repr(given)[:80]
    message = f"{name}: {key} is {shown}; allowed: {allowed}"
    return InvalidSetting(message, name=name, value=shown, allowed=allowed)
