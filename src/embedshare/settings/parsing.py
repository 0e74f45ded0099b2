"""Parses settings' texts: pure functions that return the value. Their ValueError says what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

Parser = Callable[[str], Any]
#: Among the models whose code runs: the one that EMBEDDING_MODEL_NAME names.
CONFIGURED = "true"
_RATE = re.compile(r"[1-9]\d{0,8}/(?:second|minute|hour|day)")
#: An origin: a scheme (browser extensions and programs have their own), a host and at most a port.
_ORIGIN = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://(?:[a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_ALLOWED_HOST = re.compile(r"\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_DATABASES = ("sqlite", "postgres", "postgresql", "mysql", "mariadb")


def boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def required_text(text: str) -> str:
    if not text:
        raise ValueError("any text that is not empty")
    return text


def optional_text(text: str) -> str | None:
    return text or None


def key(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text in UTF-8") from None  # not the error itself, which quotes the key
    return text or None


def choice(*allowed: str) -> Parser:
    """One of a few words, in lower case."""

    def parse(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError(", ".join(allowed))
        return text.lower()

    return parse


def integer(low: int, high: int) -> Parser:
    """A whole number between both ends."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return parse


def seconds(low: float, high: float) -> Parser:
    """A number between both ends."""

    def parse(text: str) -> float:
        allowed = f"seconds, a number from {low:g} to {high:g}"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(allowed) from None
        if not low <= value <= high:
            raise ValueError(allowed)
        return value

    return parse


def device(text: str) -> str:
    kind, _, index = text.lower().partition(":")
    known = kind in ("auto", "cpu", "cuda", "mps")
    if not known or (index and not (kind == "cuda" and index.isdecimal())) or text.endswith(":"):
        raise ValueError("auto, cpu, cuda, cuda:N (N a device number) or mps")
    return text.lower()


def host(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text or not text:
        raise ValueError("a host name or an address, in ASCII")
    return text


def hosts_with_ports(text: str) -> str:
    if not text.isascii() or "/" in text or "*" in text or "@" in text:
        raise ValueError(
            "comma-separated host names or addresses, with or without a port (wiki.example:8080)"
        )
    return text


def host_patterns(text: str) -> tuple[str, ...]:
    names = tuple(part.strip().lower().removesuffix(".") for part in text.split(",") if part.strip())
    if not all(_ALLOWED_HOST.fullmatch(name) for name in names):
        raise ValueError("comma-separated names without ports, as embed.example,*.svc.cluster.local; or *")
    return names


def origins(text: str) -> tuple[str, ...]:
    found = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    for origin in found:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError("comma-separated origins, as https://app.example,http://localhost:3000; or *")
    return found


def web_address(text: str) -> str | None:
    if not text:
        return None
    try:
        address = urlsplit(text)
        valid = address.scheme in ("http", "https") and bool(address.hostname)
    except ValueError:  # such as a bracket that is not closed
        valid = False
    if not valid or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("an address that begins with http:// or https:// and a host")
    return text.rstrip("/")


def web_addresses(text: str) -> tuple[str, ...]:
    """Several of `web_address`, separated by commas."""
    found = [web_address(part.strip()) for part in text.split(",")] if text else []
    if None in found:
        raise ValueError("comma-separated addresses that begin with http:// or https:// and a host")
    return tuple(one for one in found if one is not None)


def redis_url(text: str) -> str | None:
    if text and not text.startswith(("redis://", "rediss://")):
        raise ValueError("an address that begins with redis:// or rediss://")
    return text or None


def database_url(text: str) -> str | None:
    if text and text.partition("://")[0].partition("+")[0] not in _DATABASES:
        raise ValueError(f"a URL that begins with {', '.join(f'{kind}://' for kind in _DATABASES)}")
    return text or None


def rates(text: str) -> str:
    found = [one.strip().lower() for one in text.split(";")] if text else []
    if not all(_RATE.fullmatch(one) for one in found):
        raise ValueError("rates such as 100/second;5000/hour (second, minute, hour, day)")
    return ";".join(found)


def model_rates(text: str) -> tuple[str, ...]:
    """Rates by the names of models, each as `name=rates`."""
    found: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, _, given = (one.strip() for one in part.rpartition("="))
        limits = ";".join(one.strip().lower() for one in given.split(";"))
        fits = all(_RATE.fullmatch(one) for one in limits.split(";"))
        if not (fits and name and name.isprintable()) or name in found:
            raise ValueError("rates by model, each model once, as bge=10/second;500/hour,minilm=9/minute")
        found[name] = limits
    return tuple(f"{name}={limits}" for name, limits in found.items())


def names(text: str) -> tuple[str, ...]:
    found = tuple(name.strip() for name in text.split(",")) if text else ()
    if not _are_names(found):
        raise ValueError("comma-separated names, such as text-embedding-3-small,minilm; or *")
    return found


def trusted_models(text: str) -> tuple[str, ...]:
    """Names of models; CONFIGURED stands for the one that EMBEDDING_MODEL_NAME names."""
    if text.lower() in _BOOLEANS:
        return (CONFIGURED,) if boolean(text) else ()
    found = tuple(name.strip() for name in text.split(","))
    if not _are_names(found):
        raise ValueError("true, false, or comma-separated names and folders of models")
    return tuple(CONFIGURED if name.lower() == CONFIGURED else name for name in found)


def _are_names(found: tuple[str, ...]) -> bool:
    return all(name and name.isprintable() for name in found)
