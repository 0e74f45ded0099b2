"""Bodies beyond EMBEDDING_MAX_MESSAGE_BYTES, which some routes take from callers that may use them.

The server decides from a request's head, before its body comes, since it keeps a body of this size on disk.
With API keys it takes one from a key that may use the route, without them from a program, not from a page.
"""

from __future__ import annotations

from collections.abc import Mapping

from flask import Flask, request
from werkzeug.exceptions import HTTPException

from embedshare.access.key_ring import KeyRing
from embedshare.errors import EmbedshareError
from embedshare.web.guards import auth, paths
from embedshare.web.routes import Route

#: Where the application keeps its LargeBodies, for the server.
EXTENSION = "embedshare.large_bodies"


class LargeBodies:
    """The limit of a request's body, by its head. `ring`: the keys, in a worker that asks for one."""

    def __init__(self, app: Flask, max_bytes: int, ring: KeyRing | None) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._ring = ring

    def limit(self, method: str, path: str, headers: Mapping[str, str]) -> int | None:
        """The most bytes of a body that this route takes from this caller; None: no more than others do.

        `headers` by their names in capitals, with underscores.
        """
        try:
            route, _ = self._app.url_map.bind("").match(paths.normalized(path), method, return_rule=True)
        except HTTPException:
            return None
        may_send = isinstance(route, Route) and route.takes_large and self._admits(route, headers)
        return self._max_bytes if may_send else None

    def _admits(self, route: Route, headers: Mapping[str, str]) -> bool:
        if self._ring is None:
            return "ORIGIN" not in headers  # a page could have any visitor's browser fill the disk
        try:
            caller = self._ring.find(auth.key_in(headers.get))
        except EmbedshareError:
            return False
        return caller is not None and bool(caller.scopes.intersection(("admin", *route.scopes)))


def register(app: Flask, max_bytes: int, ring: KeyRing | None) -> None:
    """Raise the limit for the routes that are registered with `takes_large`."""
    app.extensions[EXTENSION] = LargeBodies(app, max_bytes, ring)

    @app.before_request
    def raise_limit() -> None:
        if isinstance(request.url_rule, Route) and request.url_rule.takes_large:
            request.max_content_length = max_bytes
