"""The load of this worker."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from flask import Blueprint, current_app

from embedshare.web import openapi
from embedshare.web.routes import Tag

#: The WSGI environment's key for the number of requests that the server holds.
IN_FLIGHT = "embedshare.in_flight"


class Load(msgspec.Struct):
    """Other requests that are answered or queued (null under a WSGI server that does not tell), and the
    number answered at once."""

    in_flight: int | None
    threads: int


def blueprint(threads: int) -> Blueprint:
    """`GET /load`, by which the supervisor scales the workers."""
    routes = Blueprint("load", __name__)

    @routes.get("/load", scopes=("metrics",), tag=Tag.FIGURES)
    @openapi.describe({200: Load})
    def load() -> dict[str, int | None]:
        """The load of this worker."""
        in_flight: Callable[[], int] | None = current_app.extensions.get(IN_FLIGHT)
        return {"in_flight": None if in_flight is None else max(0, in_flight() - 1), "threads": threads}

    return routes
