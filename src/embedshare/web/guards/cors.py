"""Which pages of other origins may call this worker from their visitors' browsers.

Own code, since Flask-CORS fixes the origins when it is set up, and these may change while the worker runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flask import Flask, Response, request

#: What a page may read of an answer beside its body and the few headers that browsers always show.
_EXPOSED = (
    "X-Request-ID, Retry-After, WWW-Authenticate, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset"
)
#: How long a browser may remember a preflight's answer, in seconds: as long a withdrawn origin is allowed.
_REMEMBERED_S = 60


def register(app: Flask, origins: Callable[[], Sequence[str]]) -> None:
    """Allow the pages of `origins()`, of which `*` is all; it is asked for at each request.

    Cookies are never allowed: this worker knows none, and who calls shows a key. A preflight is answered
    here, before anyone asks for that key, which browsers do not send along with it.
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
            # as asked for, since clients have headers of their own and `*` would leave out Authorization
            headers["Access-Control-Allow-Headers"] = request.headers.get(
                "Access-Control-Request-Headers", ""
            )
            headers["Access-Control-Max-Age"] = str(_REMEMBERED_S)
        else:
            headers["Access-Control-Expose-Headers"] = _EXPOSED
        return response
