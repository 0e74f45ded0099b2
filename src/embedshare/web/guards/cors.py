"""Allows pages of other origins to call this worker from their visitors' browsers.

Own code, since Flask-CORS fixes the origins at setup, and these may change while the worker runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flask import Flask, Response, request

#: Headers that a page may read, besides the few that browsers always show.
_EXPOSED = (
    "X-Request-ID, Retry-After, WWW-Authenticate, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset"
)
#: Seconds that a browser may cache a preflight's answer: a withdrawn origin stays allowed that long.
_REMEMBERED_S = 60


def register(app: Flask, origins: Callable[[], Sequence[str]]) -> None:
    """Allow the pages of `origins()`, where `*` is all; it is called for each request.

    Cookies are never allowed: this worker has none, and callers send a key. A preflight is answered here,
    before the check of that key, which browsers do not send with it.
    """

    @app.before_request
    def answer_preflight() -> Response | None:
        preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        return Response(status=204) if preflight else None

    @app.after_request
    def allow(response: Response) -> Response:
        allowed = [one.lower() for one in origins()]
        if allowed and "*" not in allowed:
            response.vary.add("Origin")
        origin = request.headers.get("Origin")
        if origin is None or not (origin in allowed or "*" in allowed):
            return response
        headers = response.headers
        headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else origin
        wanted = request.headers.get("Access-Control-Request-Method")
        if request.method == "OPTIONS" and wanted is not None:
            headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE"
            # as requested, since clients have headers of their own and `*` would leave out Authorization
            headers["Access-Control-Allow-Headers"] = request.headers.get(
                "Access-Control-Request-Headers", ""
            )
            headers["Access-Control-Max-Age"] = str(_REMEMBERED_S)
        else:
            headers["Access-Control-Expose-Headers"] = _EXPOSED
        return response
