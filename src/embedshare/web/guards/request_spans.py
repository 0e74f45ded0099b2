"""Gives each request a span, under the one that its caller names in `traceparent`, where spans are on.

Health checks, figures and pages have none: they come every few seconds, and nobody looks for one of them.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, g, request

from embedshare.telemetry import request_ids, tracing
from embedshare.web.routes import Route, Tag

#: Methods that a span names; any other is _OTHER, as in OpenTelemetry's conventions.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_WITHOUT = frozenset({Tag.HEALTH, Tag.FIGURES, Tag.PAGES})


def register(app: Flask) -> None:
    """Give requests their spans, if this process has any."""
    if not tracing.enabled:
        return

    @app.before_request
    def begin() -> None:
        rule = request.url_rule
        if isinstance(rule, Route) and rule.tag in _WITHOUT:
            return
        method = request.method if request.method in _METHODS else "_OTHER"
        # The path and the query are left out: they hold callers' words and ids.
        told = {"http.request.method": method, "url.scheme": request.scheme}
        told[tracing.REQUEST_ID] = request_ids.current() or ""
        if rule is not None:
            told["http.route"] = rule.rule
        name = method if rule is None else f"{method} {rule.rule}"
        g.span = tracing.entry(name, "server", told, _parent())
        g.span_within = g.span.__enter__()

    @app.after_request
    def tell(response: Response) -> Response:
        span: tracing.Span | None = g.get("span_within")
        if span is not None:
            span.note({"http.response.status_code": response.status_code})
            if response.status_code >= 500:
                span.fail(str(response.status_code))
        return response

    @app.teardown_request
    def end(error: BaseException | None) -> None:
        entered: Any = g.pop("span", None)  # a test client ends a request twice
        if entered is not None:
            entered.__exit__(None if error is None else type(error), error, None)


def _parent() -> tracing.Parent | None:
    given = request.headers.get("traceparent")
    return None if given is None else tracing.Parent(given, request.headers.get("tracestate", ""))
