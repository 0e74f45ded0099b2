"""The fields of a model's specification: their names, and their values as text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from embedshare.errors import InvalidSetting
from embedshare.models.spec import OVERRIDES
from embedshare.settings import ANY_NAME, parse

#: The longest name, in characters.
MAX_NAME = 4096


def value_of(key: str, text: str) -> Any:
    """The value of a field that is no list. Raises ValueError with what is allowed."""
    try:
        return FIELDS[key](text)
    except InvalidSetting as error:
        raise ValueError(error.fields["allowed"]) from None


def boolean(text: str) -> bool:
    """Raises ValueError with what is allowed."""
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > MAX_NAME or text == ANY_NAME:
        raise ValueError(f"a printable name of 1 to {MAX_NAME} characters, not {ANY_NAME}")
    return text


def _name_or_any(text: str) -> str:
    return text if text == ANY_NAME else _name(text)


def _dimensions(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 1 << 16:
        raise ValueError(f"a whole number from 1 to {1 << 16:,}")
    return int(text)


def _keep_alive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if seconds != -1 and not 0 <= seconds <= 1e9:
        raise ValueError("seconds from 0 on, or -1 for ever")
    return seconds


def _cache(text: str) -> str:
    if text not in ("off", "memory", "all"):
        raise ValueError("off, memory or all")
    return text


def _setting(field: str) -> Callable[[str], Any]:
    return lambda text: parse(OVERRIDES[field], text, field)


#: The function that reads each field; for `aliases`, one of them.
FIELDS: Mapping[str, Callable[[str], Any]] = {
    "id": _name,
    "name": _name,
    "aliases": _name_or_any,
    "dimensions": _dimensions,
    "preload": boolean,
    "pinned": boolean,
    "keep_alive_s": _keep_alive,
    "cache": _cache,
    "trust_remote_code": boolean,
    **{field: _setting(field) for field in OVERRIDES},
}
