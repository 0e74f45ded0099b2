"""The spellings of a path that the clients of other services' APIs make of an address.

Client libraries join a base address and a path, so that slashes are doubled or left at the end, and some are
given the address without `/v1`. Such a path becomes the route's own before anything else looks at it: keys,
the forms of errors and metrics know one path for each route. Other routes keep exact paths, since a proxy may
let some of them through and not others.
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
    """Have the application see each path in its own spelling."""
    app.wsgi_app = _Normalized(app.wsgi_app)  # type: ignore[method-assign]


def normalized(path: str) -> str:
    """The path that a route has, for any spelling of it."""
    single = _SLASHES.sub("/", path)
    single = single.rstrip("/") or single[:1]
    first = single.partition("/")[2].partition("/")[0]
    return _OTHER_NAMES.get(single, single) if first in _OF_APIS else path


class _Normalized:
    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["PATH_INFO"] = normalized(environ.get("PATH_INFO", ""))  # absent where it is empty
        return self._app(environ, start_response)
