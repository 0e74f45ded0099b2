"""Metadata of documents, by the types that a session declares. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from embedshare.errors import InvalidInput

TYPES = ("keyword", "integer", "float", "boolean", "date")
#: Fields of one schema or one document, and the longest name and value of a field.
MOST_FIELDS, MOST_NAME, MOST_VALUE = 64, 128, 8192
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_BOOLEANS = {"true": True, "false": False}


def checked_schema(schema: Mapping[str, str]) -> dict[str, str]:
    """The schema, with its fields in order. Raises InvalidInput."""
    if len(schema) > MOST_FIELDS:
        raise InvalidInput(f"metadata_schema has {len(schema)} fields; {MOST_FIELDS} are allowed")
    for name, kind in schema.items():
        _check_name(name)
        if kind not in TYPES:
            raise InvalidInput(f"metadata_schema: {name} is {kind!r}; allowed: {', '.join(TYPES)}")
    return dict(sorted(schema.items()))


def typed(given: Mapping[str, str], schema: Mapping[str, str]) -> dict[str, Any]:
    """A document's metadata: declared fields in their types, the others as text. Raises InvalidInput."""
    if len(given) > MOST_FIELDS:
        raise InvalidInput(f"metadata has {len(given)} fields; {MOST_FIELDS} are allowed")
    return {name: _value(name, text, schema.get(name, "keyword")) for name, text in sorted(given.items())}


def _check_name(name: str) -> None:
    if len(name) > MOST_NAME or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"metadata: {name[:MOST_NAME]!r} is no name of a field: up to {MOST_NAME} letters, digits, "
            "_ and -, beginning with a letter or _"
        )


def _value(name: str, text: str, kind: str) -> Any:
    _check_name(name)
    if len(text) > MOST_VALUE:
        raise InvalidInput(f"metadata: {name} has {len(text):,} characters; {MOST_VALUE:,} are allowed")
    try:
        if kind == "integer":
            value: Any = int(text)
        elif kind == "float":
            value = float(text)
        elif kind == "boolean":
            value = _BOOLEANS[text.lower()]
        else:
            value = text
    except (ValueError, KeyError):
        raise InvalidInput(f"metadata: {name} is {text[:100]!r}, which is no {kind}") from None
    _check_type(name, value, kind)
    return value


def _check_type(name: str, value: Any, kind: str) -> None:
    if not _is_of(value, kind):
        raise InvalidInput(f"metadata: {name} is {str(value)[:100]!r}, which is no {kind}")


def _is_of(value: Any, kind: str) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind == "boolean":
        return isinstance(value, bool)
    return isinstance(value, str) and (kind != "date" or _is_date(value))


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        return False
    return True
