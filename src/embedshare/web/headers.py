"""Headers that every answer has, so that no browser makes more of it than it is."""

from __future__ import annotations

from flask import Flask, Response, request

#: What holds for every answer: JSON is not taken for something to run, nothing is shown in another's frame,
#: no address goes to another site, and no other site loads it as a picture, a script or the like.
FIXED = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
#: What holds where a view says nothing else: nobody keeps an answer, and shown in a browser it loads nothing.
_UNLESS_SAID = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)
#: Told to browsers that came over TLS: come that way for a year.
_HSTS = ("Strict-Transport-Security", "max-age=31536000")


def register(app: Flask) -> None:
    """Put them on every answer of the application."""

    @app.after_request
    def protect(response: Response) -> Response:
        headers = response.headers
        for name, value in FIXED:
            headers.add(name, value)
        for name, value in _UNLESS_SAID:
            headers.setdefault(name, value)
        if request.is_secure:
            headers.add(*_HSTS)
        return response
