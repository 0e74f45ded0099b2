"""API keys: what they look like, what is kept of them, and what they can be for.

A key holds 256 random bits, so that nobody finds it by trying, and a fast digest (SHA-256) keeps it as well
as a slow one would. It is found by its digest: how long that takes tells nothing of any key.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from embedshare.errors import InvalidInput

#: What a key can be for; `admin` stands for all of them.
SCOPES = {
    "embed": "embedding, tokenizing and asking for the model",
    "search": "web searches and vector indexes",
    "settings": "reading and changing settings",
    "metrics": "metrics, load and the dashboard's figures",
    "admin": "all of these",
}
_PREFIX = "es_"


@dataclass(frozen=True)
class Principal:
    """Whom a key belongs to, and what it is for.

    `id` is None for keys that are in no database. `expires_at` in seconds since 1970.
    """

    name: str
    scopes: frozenset[str]
    id: int | None = None
    expires_at: float | None = None


def make() -> str:
    """A new key."""
    return f"{_PREFIX}{secrets.token_urlsafe(32)}"


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf8", "surrogatepass")).hexdigest()


def checked_name(name: str) -> str:
    """A name for a key. Raises InvalidInput."""
    if not (name.isprintable() and 0 < len(name.strip()) == len(name) <= 100):
        raise InvalidInput("a key's name has 1 to 100 printable characters, and no space at its ends")
    return name


def checked_scopes(scopes: Iterable[str]) -> list[str]:
    """Scopes for a key, each once. Raises InvalidInput."""
    given = list(dict.fromkeys(scopes))
    unknown = [scope for scope in given if scope not in SCOPES]
    if unknown or not given:
        said = f"there is no scope {unknown[0]!r}" if unknown else "a key needs a scope"
        raise InvalidInput(f"{said}; there are {', '.join(SCOPES)}")
    return given
