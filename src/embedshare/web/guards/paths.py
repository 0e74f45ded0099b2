"""Normalizes paths as clients of other services' APIs spell them.

Client libraries join a base address and a path, which doubles slashes or leaves one at the end, and some get
the address without `/v1`. Such a path becomes the route's own before keys, forms of errors and metrics see
it. Other routes keep exact paths, since a proxy may allow some of them and not others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Flask

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: The first parts of the paths of OpenAI's, Ollama's and text-embeddings-inference's APIs.
_OF_APIS = frozenset({"", "v1", "api", "embeddings", "embed", "info", "tokenize"})
_OTHER_NAMES = {"/embeddings": "/v1/embeddings"}
_SLASHES = re.compile("/{2,}")


def register(app: Flask) -> None:
    """Give the application each path in its own spelling."""
    app.wsgi_app = _Normalized(app.wsgi_app)  # type: ignore[method-assign]


def normalized(path: str) -> str:
    """The route's path, for any spelling of it."""
    single = _SLASHES.sub("/", path)
    single = single.rstrip("/") or single[:1]
    first = single.partition("/")[2].partition("/")[0]
    return _OTHER_NAMES.get(single, single) if first in _OF_APIS else path


class _Normalized:
    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["PATH_INFO"] = normalized(environ.get("PATH_INFO", ""))  # absent if it is empty
        return self._app(environ, start_response)
