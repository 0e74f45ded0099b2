"""What a request is called in every log that it comes by: worker and server, line by line."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: What an id may be, as a regular expression.
FORM = "[A-Za-z0-9._-]{1,128}"
#: The ids of a batch that a log line names, at most.
_MOST_NAMED = 8
#: What the ids of several requests together may be, likewise.
SEVERAL = f"{FORM}(?:,{FORM}){{0,{_MOST_NAMED - 1}}}"
_form = re.compile(FORM)
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current() -> str | None:
    """The id of the request that this thread, or this task, works for."""
    return _current.get()


def enter(request_id: str | None) -> None:
    """From here on this thread, or this task, works for that request; None for none."""
    _current.set(request_id)


def taken_or_made(given: str | None) -> str:
    """The id that a request came with, if it is one, else a new one."""
    if given is not None and _form.fullmatch(given):
        return given
    # It names a request and protects nothing; the system's random bytes would cost a switch between threads.
    return f"{random.getrandbits(64):016x}"  # nosec B311


@contextmanager
def within(ids: Iterable[str | None]) -> Iterator[None]:
    """What is logged in here concerns all these requests."""
    token = _current.set(",".join(list(dict.fromkeys(filter(None, ids)))[:_MOST_NAMED]) or None)
    try:
        yield
    finally:
        _current.reset(token)
