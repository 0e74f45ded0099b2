"""Bodies beyond EMBEDDING_MAX_MESSAGE_BYTES, which some routes take from callers that may use them.

The server decides from a request's head, before its body comes, since it keeps a body of this size on disk.
With API keys it takes one from a key that may use the route, without them from a program or a page of this
worker's own, not from another site's page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flask import Flask, request
from werkzeug.exceptions import HTTPException

from embedshare.access.key_ring import KeyRing
from embedshare.errors import EmbedshareError
from embedshare.settings import Settings
from embedshare.web.guards import auth, cross_site, paths
from embedshare.web.routes import Route

#: Where the application keeps its LargeBodies, for the server.
EXTENSION = "embedshare.large_bodies"


class Limit(NamedTuple):
    """The most bytes of a body, and the setting that says so."""

    bytes: int
    setting: str


class LargeBodies:
    """The limit of a request's body, by its head. `ring`: the keys, in a worker that asks for one."""

    def __init__(self, app: Flask, settings: Settings, ring: KeyRing | None) -> None:
        self._app = app
        self._settings = settings
        self._ring = ring

    def limit(self, method: str, path: str, headers: Mapping[str, str]) -> Limit | None:
        """The most that this route takes from this caller; None: no more than others do.

        `headers` by their names in capitals, with underscores.
        """
        try:
            route, _ = self._app.url_map.bind("").match(paths.normalized(path), method, return_rule=True)
        except HTTPException:
            return None
        if not isinstance(route, Route) or not route.large_limit or not self._admits(route, headers):
            return None
        return Limit(self._settings.value(route.large_limit), route.large_limit)

    def _admits(self, route: Route, headers: Mapping[str, str]) -> bool:
        if self._ring is None:
            return self._is_own(headers)  # another page could have any visitor's browser fill the disk
        try:
            caller = self._ring.find(auth.key_in(headers.get))
        except EmbedshareError:
            return False
        return caller is not None and bool(caller.scopes.intersection(("admin", *route.scopes)))

    def _is_own(self, headers: Mapping[str, str]) -> bool:
        """Whether a program or a page of this worker sends the request."""
        web, host = self._settings.web, headers.get("HOST", "")
        origin, site = headers.get("ORIGIN"), headers.get("SEC_FETCH_SITE")
        try:
            cross_site.check_host(host, (*web.allowed_hosts, web.host))
            cross_site.check_origin(origin, site, follows_link=False, host=host, allowed=())
        except EmbedshareError:
            return False
        return True


def register(app: Flask, settings: Settings, ring: KeyRing | None) -> None:
    """Raise the limit for the routes that are registered with `large_limit`, the name of their setting."""
    app.extensions[EXTENSION] = LargeBodies(app, settings, ring)

    @app.before_request
    def raise_limit() -> None:
        if isinstance(request.url_rule, Route) and request.url_rule.large_limit:
            request.max_content_length = settings.value(request.url_rule.large_limit)
