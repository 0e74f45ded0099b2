"""The settings that can change at run time: their keys, and their values to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from embedshare.errors import InvalidSetting, UnknownSetting
from embedshare.settings import Settings, parse

#: Keys as callers use them, and the environment's names of these settings.
NAMES = {
    "model_name": "EMBEDDING_MODEL_NAME",
    "device": "EMBEDDING_DEVICE",
    "model_cache_dir": "EMBEDDING_MODEL_CACHE_DIR",
    "normalize_embeddings": "EMBEDDING_NORMALIZE",
    "max_batch_size": "EMBEDDING_MAX_BATCH_SIZE",
    "host": "EMBEDDING_HOST",
    "port": "PORT",
    "cors_origins": "CORS_ORIGINS",
}
#: The settings that the model server applies.
OF_THE_MODEL = frozenset({"model_name", "device", "model_cache_dir", "max_batch_size"})
#: The settings of a web worker's address.
OF_THE_LISTENER = frozenset({"host", "port"})
_BOOLEANS = frozenset({"normalize_embeddings"})
_NUMBERS = frozenset({"max_batch_size", "port"})
_LISTS = frozenset({"cors_origins"})
#: In place of a value: the environment's holds again.
DELETED: Any = object()
#: The longest text of a value.
MAX_TEXT = 4096


def check_known(key: str) -> None:
    """Raise UnknownSetting for an unknown key."""
    if key not in NAMES:
        raise UnknownSetting(
            f"unknown setting {key[:64]!r}; the ones that can be changed are {', '.join(NAMES)}"
        )


def value_of(key: str, given: Any) -> Any:
    """The JSON value for `key` that a caller or a row of the database gives.

    Text is parsed as in the environment. Raises InvalidSetting.
    """
    if key not in NAMES:
        message = f"{key[:64]!r} cannot be set; allowed: {', '.join(NAMES)}"
        raise InvalidSetting(message, name=key[:64], value="", allowed=", ".join(NAMES))
    text = _text(key, given)
    if text is None or len(text) > MAX_TEXT or not text.isprintable():
        kind = "true or false" if key in _BOOLEANS else "a whole number" if key in _NUMBERS else "text"
        allowed = "a list of texts" if key in _LISTS else kind
        shown = repr(given)[:80]
        message = f"{key} is {shown}; allowed: {allowed}"
        raise InvalidSetting(message, name=key, value=shown, allowed=allowed)
    value = parse(NAMES[key], text.strip(), key)
    return list(value) if isinstance(value, tuple) else value


def _text(key: str, given: Any) -> str | None:
    """The value's text in the environment; None if the value is of another type."""
    if isinstance(given, str):
        return given
    if given is None and key == "model_cache_dir":
        return ""
    if key in _LISTS and isinstance(given, list) and all(isinstance(one, str) for one in given):
        return ",".join(given)
    if isinstance(given, bool):
        return str(given).lower() if key in _BOOLEANS else None
    return str(given) if key in _NUMBERS and isinstance(given, int) else None


def encoded(value: Any) -> str:
    """A value in the form of a row."""
    return json.dumps(value, ensure_ascii=False)


def decoded(raw: str) -> Any:
    """The value in a row; text that is not JSON stands for itself, as operators write it."""
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def shown(settings: Settings) -> dict[str, Any]:
    """The settings in force, by key, in JSON's types."""
    values = {key: settings.value(name) for key, name in NAMES.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """`settings` with `values` (of `value_of`, by key) in place of its own."""
    changes = {NAMES[key]: tuple(value) if key in _LISTS else value for key, value in values.items()}
    return settings.with_values(changes)
