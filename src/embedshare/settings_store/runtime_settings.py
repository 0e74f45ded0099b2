"""The settings that can be changed while everything runs: their keys, and values to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from embedshare.errors import InvalidSetting, UnknownSetting
from embedshare.settings import Settings, parse

#: Keys as callers know them, and what the environment calls these settings.
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
#: Those that the model server applies.
OF_THE_MODEL = frozenset({"model_name", "device", "model_cache_dir", "max_batch_size"})
#: Those that say where a web worker listens.
OF_THE_LISTENER = frozenset({"host", "port"})
_BOOLEANS = frozenset({"normalize_embeddings"})
_NUMBERS = frozenset({"max_batch_size", "port"})
_LISTS = frozenset({"cors_origins"})
#: In place of a value: the setting goes, and the environment's holds again.
DELETED: Any = object()
#: The longest text that a value may be.
MAX_TEXT = 4096


def check_known(key: str) -> None:
    """Raise UnknownSetting where there is no such key."""
    if key not in NAMES:
        raise UnknownSetting(f"there is no setting {key[:64]!r} to change; there are {', '.join(NAMES)}")


def value_of(key: str, given: Any) -> Any:
    """The value, as JSON keeps it, that a caller or a row of the database gives for `key`.

    Text is read as the environment's is. Raises InvalidSetting.
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
    """What would stand in the environment; None where the value is of another type."""
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
    """A value as a row of the database has it."""
    return json.dumps(value, ensure_ascii=False)


def decoded(raw: str) -> Any:
    """The value in a row; what is no JSON is a text, as an operator writes it by hand."""
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def shown(settings: Settings) -> dict[str, Any]:
    """The settings in force, by key, as JSON shows them."""
    values = {key: settings.value(name) for key, name in NAMES.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """`settings` with `values` (of `value_of`, by key) in place of its own."""
    changes = {NAMES[key]: tuple(value) if key in _LISTS else value for key, value in values.items()}
    return settings.with_values(changes)
