"""A request's id in every log line about it, in worker and server."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: The form of an id, as a regular expression.
FORM = "[A-Za-z0-9._-]{1,128}"
#: The most ids of a batch that a log line names.
_MOST_NAMED = 8
#: The form of several requests' ids together.
SEVERAL = f"{FORM}(?:,{FORM}){{0,{_MOST_NAMED - 1}}}"
_form = re.compile(FORM)
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current() -> str | None:
    """The id of this thread's or task's request."""
    return _current.get()


def enter(request_id: str | None) -> None:
    """Set this thread's or task's request; None for none."""
    _current.set(request_id)


def taken_or_made(given: str | None) -> str:
    """The request's own id if it is valid, else a new one."""
    if given is not None and _form.fullmatch(given):
        return given
    # It names a request and protects nothing; the system's random bytes would cost a switch between threads.
    return f"{random.getrandbits(64):016x}"  # nosec B311


@contextmanager
def within(ids: Iterable[str | None]) -> Iterator[None]:
    """Log lines in this context name all these requests."""
    token = _current.set(",".join(list(dict.fromkeys(filter(None, ids)))[:_MOST_NAMED]) or None)
    try:
        yield
    finally:
        _current.reset(token)
