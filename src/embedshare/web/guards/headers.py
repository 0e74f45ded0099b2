"""Security headers of every answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Headers of every answer: JSON is not executed, nothing is framed, and no address goes to another site. No
#: other site loads it as a picture, a script or the like.
FIXED = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
#: Defaults for answers of views: not cached, and without any resource if shown in a browser.
_UNLESS_SAID = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)
#: For browsers that came over TLS: use it for a year.
_HSTS = ("Strict-Transport-Security", "max-age=31536000")


def register(app: Flask) -> None:
    """Put them on every answer of the application."""
    app.wsgi_app = _Protected(app.wsgi_app)  # type: ignore[method-assign]


class _Protected:
    """Adds them where an answer begins: a Flask hook, header by header, takes much longer."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /) -> Any:
            said = {name.lower() for name, _ in headers}
            headers = [*headers, *FIXED, *(each for each in _UNLESS_SAID if each[0].lower() not in said)]
            if environ["wsgi.url_scheme"] == "https":
                headers.append(_HSTS)
            return start_response(status, headers, exc_info)

        return self._app(environ, start)
