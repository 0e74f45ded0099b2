"""Filters of searches: what callers write, and the conditions that engines check. Pure."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from embedshare.errors import InvalidInput
from embedshare.sessions.store import metadata

#: Fields of each chunk that filters may name, and their types.
BUILT_IN = {"document": "keyword", "chunk": "integer", "page": "integer", "heading": "keyword"}
_BOUNDS = ("gt", "gte", "lt", "lte")


@dataclass(frozen=True)
class AnyOf:
    """One of the key's values is one of these."""

    key: str
    values: tuple[str | int, ...]


@dataclass(frozen=True)
class Range:
    """One of the key's numbers, or dates as text, is within the bounds."""

    key: str
    is_date: bool
    bounds: dict[str, Any]


@dataclass(frozen=True)
class Either:
    """One of the conditions holds."""

    conditions: tuple[Condition, ...]


Condition = AnyOf | Range | Either


@dataclass(frozen=True)
class Where:
    """A point matches if all of `must` hold and none of `must_not`."""

    must: list[Condition] = field(default_factory=list)
    must_not: list[Condition] = field(default_factory=list)


class FilterTypes(NamedTuple):
    """An engine's classes of these conditions, whose arguments have the same names."""

    filter: Any
    field: Any
    match_value: Any
    match_any: Any
    range: Any
    date_range: Any


def equal(key: str, value: str) -> AnyOf:
    """The condition that the key's value is `value`."""
    return AnyOf(key, (value,))


def conditions(filters: Mapping[str, Any], schema: Mapping[str, str]) -> list[Condition]:
    """The conditions that a caller's filters mean. Raises InvalidInput."""
    return [_condition(name, wanted, schema) for name, wanted in filters.items()]


def translated(where: Where, types: FilterTypes) -> Any:
    """The engine's own filter; None for one that every point matches."""
    if not where.must and not where.must_not:
        return None
    must, must_not = ([_own(each, types) for each in some] for some in (where.must, where.must_not))
    return types.filter(must=must, must_not=must_not)


def _own(condition: Condition, types: FilterTypes) -> Any:
    if isinstance(condition, Either):
        return types.filter(should=[_own(each, types) for each in condition.conditions])
    if isinstance(condition, Range):
        kind = types.date_range if condition.is_date else types.range
        return types.field(key=condition.key, range=kind(**condition.bounds))
    if len(condition.values) == 1:
        return types.field(key=condition.key, match=types.match_value(value=condition.values[0]))
    return types.field(key=condition.key, match=types.match_any(any=list(condition.values)))


def _condition(name: str, wanted: Any, schema: Mapping[str, str]) -> Condition:
    if not isinstance(name, str):
        raise InvalidInput(f"a filter's name is a text, not {type(name).__name__}")
    if isinstance(wanted, Mapping):
        return _range(name, wanted, schema)
    values = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    if not values:
        raise InvalidInput(f"the filter {name!r} is an empty list, which nothing matches", field=name)
    return _any(list(_equals(name, values, schema)))


def _equals(name: str, values: list[Any], schema: Mapping[str, str]) -> Iterator[Condition]:
    exact: dict[str, list[str | int]] = {}
    for value in values:
        for kind in _kinds(name, value, schema):
            is_whole = kind == "integer" and name not in BUILT_IN and name not in schema
            key, copy = _key(name, kind), metadata.copied(name, int(value) if is_whole else value, kind)
            if kind == "date":
                yield Range(key, True, {"gte": copy, "lte": copy})
            elif kind == "float":
                yield Range(key, False, _around(copy))
            else:
                exact.setdefault(key, []).append(copy)
    for key, copies in exact.items():
        yield AnyOf(key, tuple(copies))


def _around(number: float) -> dict[str, float]:
    """A float's bounds. The embedded engine reads some numbers back with another last digit."""
    largest = sys.float_info.max
    return {
        "gte": max(math.nextafter(number, -math.inf), -largest),
        "lte": min(math.nextafter(number, math.inf), largest),
    }


def _range(name: str, wanted: Mapping[str, Any], schema: Mapping[str, str]) -> Condition:
    if not wanted or not set(wanted) <= set(_BOUNDS):
        raise InvalidInput(
            f"the filter {name!r} is a range, which has one or more of {', '.join(_BOUNDS)}", field=name
        )
    kinds = {kind for bound in wanted.values() for kind in _kinds(name, bound, schema)}
    if name not in BUILT_IN and name not in schema and kinds == {"float"}:
        kinds = {"integer", "float"}  # whole numbers may lie between fractions
    if not kinds <= {"integer", "float", "date"}:
        raise InvalidInput(
            f"the filter {name!r} is a range, which needs numbers, or a field declared as date", field=name
        )
    return _any(
        [Range(_key(name, kind), kind == "date", _bounds(name, wanted, kind)) for kind in sorted(kinds)]
    )


def _bounds(name: str, wanted: Mapping[str, Any], kind: str) -> dict[str, Any]:
    checked = "float" if kind == "integer" else kind
    return {bound: metadata.copied(name, value, checked) for bound, value in wanted.items()}


def _kinds(name: str, value: Any, schema: Mapping[str, str]) -> tuple[str, ...]:
    """The types under which the field may be stored: an undeclared number under its own."""
    kind = BUILT_IN.get(name) or schema.get(name)
    if kind is not None:
        return (kind,)
    natural = metadata.natural_kind(value)
    if natural is None:
        raise InvalidInput(
            f"the filter {name!r} is a {type(value).__name__}: text, number, boolean, a list of these or a "
            "range are allowed",
            field=name,
        )
    if natural not in ("integer", "float"):
        return (natural,)
    return ("integer", "float") if natural == "integer" or _is_whole(value) else ("float",)


def _is_whole(number: float) -> bool:
    return float(number).is_integer() and abs(number) < 2**63


def _key(name: str, kind: str) -> str:
    return name if name in BUILT_IN else metadata.key(name, kind)


def _any(parts: list[Condition]) -> Condition:
    return parts[0] if len(parts) == 1 else Either(tuple(parts))
