"""What the present request has used: its model, texts and tokens, for the audit log.

Outside a request that is audited, nothing is noted.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Usage:
    """The model's name, None if none was asked for; the texts that came, and the tokens that the model read,
    None where it was not asked or does not tell."""

    model: str | None = None
    texts: int = 0
    tokens: int | None = None


_current: ContextVar[Usage | None] = ContextVar("usage", default=None)


def enter(usage: Usage | None) -> None:
    """Set this thread's or task's request; None for none."""
    _current.set(usage)


def current() -> Usage | None:
    """The usage of this thread's or task's request."""
    return _current.get()


def of_model(name: str) -> None:
    """The request asks for this model; of several the first counts."""
    usage = _current.get()
    if usage is not None and usage.model is None:
        usage.model = name


def of_texts(count: int) -> None:
    """The request has these texts more."""
    usage = _current.get()
    if usage is not None:
        usage.texts += count


def of_tokens(count: int) -> None:
    """The model has read these tokens more."""
    usage = _current.get()
    if usage is not None:
        usage.tokens = count + (usage.tokens or 0)
