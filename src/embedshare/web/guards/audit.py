"""Writes an audit line for each request that reads or embeds texts, changes something, or is refused.

A line never holds a text, a key, or a path as it was sent: the id of an index in it would open the index.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol

import msgspec
from flask import Flask, Response, g, request

from embedshare.telemetry import request_ids, usage
from embedshare.web.guards import auth

#: Requests by these methods change nothing and read no texts.
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
#: A request with this answer was refused: by its key, its rates, or its host.
_REFUSED = frozenset({401, 403, 421, 429})


class Log(Protocol):
    """Appends lines; raises nothing."""

    def write(self, line: bytes) -> None: ...


class Line(msgspec.Struct):
    """A request: `time` in UTC at its end, `route` with its variable parts by name, `ms` its milliseconds.

    `key` and `key_id` are null without a valid key, `key_id` for keys outside the database too. `model` is
    the id of the model that the request asked for, `texts` their number, `tokens` null where none were read
    or their number is not known.
    """

    time: str
    request_id: str | None
    key: str | None
    key_id: int | None
    address: str | None
    method: str
    route: str | None
    model: str | None
    texts: int
    tokens: int | None
    status: int
    ms: float


def register(app: Flask, log: Log) -> None:
    """Audit the requests of `app`, before all hooks that may refuse one."""

    @app.before_request
    def begin() -> None:
        g.audit_began = time.perf_counter()
        usage.enter(usage.Usage())

    @app.after_request
    def end(response: Response) -> Response:
        if _is_audited(response.status_code):
            log.write(msgspec.json.encode(_line(response.status_code)) + b"\n")
        return response

    @app.teardown_request
    def leave(_: BaseException | None) -> None:
        usage.enter(None)  # the thread serves other requests next


def _is_audited(status: int) -> bool:
    return status in _REFUSED or (request.url_rule is not None and request.method not in _READING)


def _line(status: int) -> Line:
    caller, used = auth.principal(), usage.current() or usage.Usage()
    return Line(
        time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        request_id=request_ids.current(),
        key=None if caller is None else caller.name,
        key_id=None if caller is None else caller.id,
        address=auth.client_address(),
        method=request.method[:20],
        route=None if request.url_rule is None else request.url_rule.rule,
        model=used.model,
        texts=used.texts,
        tokens=used.tokens,
        status=status,
        ms=round((time.perf_counter() - g.audit_began) * 1e3, 3),
    )
