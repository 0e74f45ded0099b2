"""Gives each request an id: the caller's or a new one, repeated in the answer and in every log line
meanwhile."""

from __future__ import annotations

from flask import Flask, Response, request

from embedshare.telemetry import request_ids

HEADER = "X-Request-ID"


def register(app: Flask) -> None:
    """Give every request an id, before all other hooks, so that their log lines have it."""

    @app.before_request
    def enter() -> None:
        request_ids.enter(request_ids.taken_or_made(request.headers.get(HEADER)))

    @app.after_request
    def tell(response: Response) -> Response:
        response.headers[HEADER] = request_ids.current() or ""
        return response

    @app.teardown_request
    def leave(_: BaseException | None) -> None:
        request_ids.enter(None)  # the thread serves other requests next
