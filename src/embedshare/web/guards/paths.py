"""Normalizes paths as clients of other services' APIs spell them.

Client libraries join a base address and a path, which doubles slashes or leaves one at the end, and some get
the address without `/v1`. Such a path becomes the route's own before keys, forms of errors and metrics see
it. Other routes keep exact paths, since a proxy may allow some of them and not others.

A browser's visit to the path of an API that has a page goes to that page, which is a route of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Flask
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: The first parts of the paths of OpenAI's, Ollama's and text-embeddings-inference's APIs.
_OF_APIS = frozenset({"", "v1", "api", "embeddings", "embed", "info", "tokenize"})
#: Pages that browsers get at the path of an API.
_PAGES = {"/sessions": "/sessions.html"}
_SLASHES = re.compile("/{2,}")


def register(app: Flask) -> None:
    """Give the application each path in its own spelling."""
    app.wsgi_app = _Normalized(app.wsgi_app)  # type: ignore[method-assign]


def normalized(path: str) -> str:
    """The route's path, for any spelling of it."""
    single = _SLASHES.sub("/", path)
    single = single.rstrip("/") or single[:1]
    first = single.partition("/")[2].partition("/")[0]
    return single if first in _OF_APIS else path


def wants_page(method: str, accept: str) -> bool:
    """Whether a request asks for a page rather than for JSON, as a browser's visit does."""
    kinds = parse_accept_header(accept, MIMEAccept)
    return method in ("GET", "HEAD") and kinds.best_match(["application/json", "text/html"]) == "text/html"


class _Normalized:
    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = normalized(environ.get("PATH_INFO", ""))  # absent if it is empty
        if path in _PAGES and wants_page(environ["REQUEST_METHOD"], environ.get("HTTP_ACCEPT", "")):
            path = _PAGES[path]
        environ["PATH_INFO"] = path
        return self._app(environ, start_response)
