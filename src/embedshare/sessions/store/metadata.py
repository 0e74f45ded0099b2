"""Metadata of chunks: JSON, checked, with a copy of each value under a key of its type. Pure.

Engines search the copies: `integer_year` holds whole numbers alone, so that two sessions may use one name for
two types. A boolean's copy is a keyword, since the embedded engine finds no boolean (qdrant-edge-py 0.9.0).
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from embedshare.errors import InvalidInput

#: The types of declared fields.
KINDS = ("keyword", "integer", "float", "boolean", "date")
#: Characters of an undeclared text that filters can find; a longer one is a text and no keyword.
KEYWORD_CHARS = 1024
_DEPTH = 32
_PLAIN = re.compile(r"[A-Za-z0-9_]+")
_UTC = datetime.timezone.utc


def checked(schema: Mapping[str, str], reserved: Mapping[str, str]) -> dict[str, str]:
    """A copy of a schema. Raises InvalidInput for an unknown type, and for the name of a reserved field."""
    for name, kind in schema.items():
        if not isinstance(name, str) or not name or name in reserved:
            raise InvalidInput(f"{name!r} cannot be a declared field; reserved: {', '.join(reserved)}")
        if kind not in KINDS:
            raise InvalidInput(f"the field {name!r} has the type {kind!r}; allowed: {', '.join(KINDS)}")
        text(name, "a field's name")
    return dict(schema)


def key(name: str, kind: str) -> str:
    """The payload key of a field's copies, which no other field or type shares."""
    spelling = f"f_{name}" if _PLAIN.fullmatch(name) else f"x_{name.encode().hex()}"
    return f"{kind}_{spelling}"


def index_kind(kind: str) -> str:
    """The type of index that engines have for the copies of a field of this type."""
    return {"boolean": "keyword", "date": "datetime"}.get(kind, kind)


def cleaned(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata as JSON values: NumPy scalars become numbers, dates ISO text. Raises InvalidInput."""
    if not isinstance(metadata, Mapping):
        raise InvalidInput(f"metadata is an object, not {type(metadata).__name__}")
    cleaned: dict[str, Any] = _cleaned(metadata, "metadata", _DEPTH)
    return cleaned


def copies(metadata: Mapping[str, Any], schema: Mapping[str, str]) -> dict[str, Any]:
    """The typed copies of cleaned metadata, by key. Raises InvalidInput for a declared field's other type."""
    found: dict[str, list[Any]] = {}
    for name, value in metadata.items():
        for each in value if isinstance(value, list) else [value]:
            kind = schema.get(name) or natural_kind(each)
            is_long = name not in schema and isinstance(each, str) and len(each) > KEYWORD_CHARS
            if each is not None and kind is not None and not is_long:
                found.setdefault(key(name, kind), []).append(copied(name, each, kind))
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def natural_kind(value: Any) -> str | None:
    """The type of an undeclared value; None if filters cannot find it."""
    if isinstance(value, bool | np.bool_):
        return "boolean"
    if isinstance(value, int | np.integer):
        return "integer"
    if isinstance(value, float | np.floating):
        return "float"
    return "keyword" if isinstance(value, str) else None


def copied(name: str, value: Any, kind: str) -> Any:
    """The copy of a value of a field of this type. Raises InvalidInput if it is of another."""
    try:
        return _COPIES[kind](value)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"the field {name!r} is {kind}: {error}", field=name) from None


def text(value: Any, what: str) -> str:
    """The text, if UTF-8 can hold it. Raises InvalidInput."""
    if not isinstance(value, str):
        raise InvalidInput(f"{what} is text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} has half a surrogate pair, which is no character") from None
    return value


def _cleaned(value: Any, at: str, depth: int) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(value, at)
    if isinstance(value, datetime.date):  # a datetime too
        return value.isoformat()
    try:
        if isinstance(value, int):
            return _integer(value)
        if isinstance(value, float):
            return _float(value)
    except ValueError as error:
        raise InvalidInput(f"{at}: {error}") from None
    return _nested(value, at, depth)


def _nested(value: Any, at: str, depth: int) -> Any:
    if not depth:
        raise InvalidInput(f"metadata is nested more than {_DEPTH} deep")
    if isinstance(value, list | tuple):
        return [_cleaned(each, at, depth - 1) for each in value]
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{at} has a {type(value).__name__}: only JSON's types are allowed")
    return {text(name, f"a name in {at}"): _cleaned(each, at, depth - 1) for name, each in value.items()}


def _keyword(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} is no text")
    return text(value, "it")


def _integer(value: Any) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ValueError(f"a {type(value).__name__} is no whole number")
    if not -(2**63) <= value < 2**63:
        raise ValueError("a whole number has at most 64 bits")
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"a {type(value).__name__} is no number")
    if not math.isfinite(value):
        raise ValueError("a number is finite")
    return float(value)


def _boolean(value: Any) -> str:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"a {type(value).__name__} is no boolean")
    return "true" if value else "false"


def _date(value: Any) -> str:
    """The instant as RFC 3339 text in UTC; a date is its first instant, a time without a zone is UTC's."""
    found = _parsed(value) if isinstance(value, str) else value
    if not isinstance(found, datetime.date):
        raise ValueError(f"a {type(value).__name__} is no date: write 2026-11-29 or 2026-11-29T10:00:00Z")
    if not isinstance(found, datetime.datetime):
        found = datetime.datetime(found.year, found.month, found.day)
    at = found.replace(tzinfo=_UTC) if found.tzinfo is None else found.astimezone(_UTC)
    return at.replace(tzinfo=None).isoformat() + "Z"


def _parsed(written: str) -> datetime.date:
    for kind in (datetime.datetime, datetime.date):
        try:
            parsed: datetime.date = msgspec.convert(written, kind)
            return parsed
        except msgspec.ValidationError:
            continue
    raise ValueError("write a date as 2026-11-29 or 2026-11-29T10:00:00Z")


_COPIES: dict[str, Callable[[Any], Any]] = {
    "keyword": _keyword, "integer": _integer, "float": _float, "boolean": _boolean, "date": _date,
}  # fmt: skip
