"""The fields of a model's specification: their names, and their values as text."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from embedshare.errors import InvalidSetting
from embedshare.models.spec import OVERRIDES, ModelSpec, RemoteSpec
from embedshare.settings import ANY_NAME, parse

#: The longest name, and the longest prompt, in characters.
MAX_NAME, MAX_PROMPT = 4096, 10_000


def value_of(reader: Callable[[str], Any], text: str) -> Any:
    """The value that a field's reader finds in the text. Raises ValueError with what is allowed."""
    try:
        return reader(text)
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


def _base_url(text: str) -> str:
    allowed = "an http or https address without user, query or fragment, such as http://127.0.0.1:11434"
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or "@" in parts.netloc or parts.query or parts.fragment or not text.isprintable():
        raise ValueError(allowed)
    return text.rstrip("/")


def _variable(text: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,254}", text):
        raise ValueError("the name of an environment variable, such as OPENAI_API_KEY; not the key itself")
    return text


def _file(text: str) -> str:
    if not os.path.isabs(text) or not text.isprintable():
        raise ValueError("the absolute path of a file that holds the key")
    return text


def _prompt(text: str) -> str:
    if len(text) > MAX_PROMPT:
        raise ValueError(f"a text of at most {MAX_PROMPT:,} characters")
    return text


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,15}", text) or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least:,} to {most:,}")
        return int(text)

    return read


def _number(least: float, most: float, unit: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise ValueError(f"{unit} from {least:g} to {most:,.0f}")
        return number

    return read


#: The function that reads each field; for a field of LISTS or MAPPINGS, one of its values.
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
#: Fields of the file of models alone: a row of a database could send a key or texts to any address.
SHARED: Mapping[str, Callable[[str], Any]] = {"space": _name, "failover": _name}
#: The fields of a remote model's service.
REMOTE: Mapping[str, Callable[[str], Any]] = {
    "base_url": _base_url,
    "api_key_env": _variable,
    "api_key_file": _file,
    "request_dimensions": _dimensions,
    "max_tokens": _whole(1, 1 << 24),
    "prompts": _prompt,
    "default_prompt": _name,
    "timeout_s": _number(0.1, 600, "seconds"),
    "requests_per_minute": _whole(1, 1_000_000),
    "tokens_per_minute": _whole(1, 1_000_000_000),
    "price_per_million_tokens": _number(0, 1_000_000, "a price"),
    "budget_per_month": _number(0, 1_000_000_000, "an amount"),
}
_SERVICE = frozenset((*REMOTE, "organization"))
#: Fields whose value is a list, or names with a value each.
LISTS, MAPPINGS = ("aliases", "failover"), ("prompts",)
_COMMON = ("id", "name", "aliases", "dimensions", "preload", "keep_alive_s", "cache")
_OF_REMOTE = {**{field: FIELDS[field] for field in _COMMON}, "model": _name, **SHARED, **REMOTE}
#: Providers of models, and the fields of their models in the file.
OF_PROVIDER: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "local": {**FIELDS, **SHARED},
    "openai": {**_OF_REMOTE, "organization": _name},
    "ollama": _OF_REMOTE,
    "tei": _OF_REMOTE,
}


def spec_of(provider: Literal["local", "openai", "ollama", "tei"], values: Mapping[str, Any]) -> ModelSpec:
    """The specification of these fields, `id` among them.

    For people a remote model's `name` is its title; `model`, by default the id, is the service's name for it.
    """
    if provider == "local":
        return ModelSpec(**{"name": values["id"], **values})
    remote = RemoteSpec(**{field: value for field, value in values.items() if field in _SERVICE})
    rest = {field: value for field, value in values.items() if field not in _SERVICE}
    title, name = rest.pop("name", None), rest.pop("model", rest["id"])
    return ModelSpec(**rest, name=name, title=title, provider=provider, remote=remote)
