"""API keys: their form, their digest and their scopes.

A key holds 256 random bits, so it cannot be guessed, and a fast digest (SHA-256) is as safe as a slow one.
Keys are found by their digest, so the time of a lookup reveals nothing about any key.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from embedshare.errors import InvalidInput
from embedshare.settings import ANY_NAME

#: The scopes of a key; `admin` stands for all of them.
SCOPES = {
    "embed": "embedding, tokenizing and asking for the model",
    "search": "web searches and vector indexes",
    "settings": "reading and changing settings",
    "metrics": "metrics, load and the dashboard's figures",
    "admin": "all of these",
}
_PREFIX = "es_"
#: The longest name of a model for a key.
_MOST_CHARS = 255


@dataclass(frozen=True)
class Principal:
    """A key's owner, its scopes and its models.

    `id` is None for keys outside the database. `expires_at` in seconds since 1970. `models` are ids and
    aliases as they were given, and None is every model.
    """

    name: str
    scopes: frozenset[str]
    id: int | None = None
    expires_at: float | None = None
    models: tuple[str, ...] | None = None


def make() -> str:
    """A new key."""
    return f"{_PREFIX}{secrets.token_urlsafe(32)}"


def digest(key: str) -> str:
    """The stored form of a key."""
    return hashlib.sha256(key.encode("utf8", "surrogatepass")).hexdigest()


def checked_name(name: str) -> str:
    """A name for a key. Raises InvalidInput."""
    if not (name.isprintable() and 0 < len(name.strip()) == len(name) <= 100):
        raise InvalidInput("a key's name must have 1 to 100 printable characters and no space at its ends")
    return name


def checked_scopes(scopes: Iterable[str]) -> list[str]:
    """Scopes for a key, each once. Raises InvalidInput."""
    given = list(dict.fromkeys(scopes))
    unknown = [scope for scope in given if scope not in SCOPES]
    if unknown or not given:
        said = f"unknown scope {unknown[0]!r}" if unknown else "a key needs a scope"
        raise InvalidInput(f"{said}; there are {', '.join(SCOPES)}")
    return given


def checked_models(names: Iterable[str]) -> list[str]:
    """Ids or aliases of models for a key, each once. Raises InvalidInput.

    Models come and go, so that a name need not be served now.
    """
    given = list(dict.fromkeys(names))
    if not given:
        raise InvalidInput("a key's models need a name; a key that is created without models may use all")
    for name in given:
        if name == ANY_NAME:
            raise InvalidInput(f"{name!r} names no model; a key that is created without models may use all")
        if not (name.isprintable() and 0 < len(name.strip()) == len(name) <= _MOST_CHARS):
            raise InvalidInput(
                f"a model's name must have 1 to {_MOST_CHARS} printable characters and no space at its ends"
            )
    return given
