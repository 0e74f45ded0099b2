"""Requests that take several calls: one model must answer all of them, and it can be replaced between two."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from embedshare.errors import ModelMismatch

T = TypeVar("T")
#: A model that is replaced as often during one request is not worth waiting for.
TRIES = 3


def answered_by_one(ask: Callable[[], tuple[Iterable[str], T]]) -> T:
    """What `ask` gives, after the identities of the models that answered it; it asks again if they differ.

    Raises ModelMismatch if they differ each time.
    """
    found: set[str] = set()
    for _ in range(TRIES):
        identities, answer = ask()
        found = set(identities)
        if len(found) == 1:
            return answer
    first, second = sorted(found)[:2]
    raise ModelMismatch(
        f"the model was replaced during the request, {TRIES} times: send it again",
        expected=first,
        found=second,
    )
