"""Refuses requests that another site's page makes a browser send to a worker without API keys.

Such a worker trusts its machine, where a browser obeys any page. Two guards stand before every route,
embedding too. The host must mean this machine, since a page can point its own name here. The origin, if a
browser names one, must be the worker's own or an allowed one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flask import Flask, request

from embedshare import hosts
from embedshare.errors import HostRefused, OriginRefused
from embedshare.settings import Settings

#: Values of Sec-Fetch-Site for a request that no other site caused.
_OWN = ("same-origin", "none")
#: Origins of programs installed on this machine, which Ollama accepts too; no page has one.
_OF_PROGRAMS = ("app://", "file://", "tauri://", "vscode-file://", "vscode-webview://")
_ANY = "*"
_SHOWN_CHARS = 100


def register(app: Flask, settings: Settings, cors_origins: Callable[[], Sequence[str]]) -> None:
    """Put the guards before every request; the allowed origins may change while the worker runs."""
    host_names = (*settings.web.allowed_hosts, settings.web.host)

    @app.before_request
    def refuse_others() -> None:
        host = request.environ.get("HTTP_HOST", "")
        check_host(host, host_names)
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return  # a preflight, which web/guards/cors.py answers
        check_origin(
            request.headers.get("Origin"),
            request.headers.get("Sec-Fetch-Site"),
            follows_link=request.method in ("GET", "HEAD")
            and request.headers.get("Sec-Fetch-Mode") == "navigate"
            and request.headers.get("Sec-Fetch-Dest") == "document",
            host=host,
            allowed=cors_origins(),
        )


def check_host(host: str, allowed: Sequence[str]) -> None:
    """Raise HostRefused if a Host header names neither this machine nor one of the `allowed` hosts."""
    if hosts.means_this_machine(host, allowed):
        return
    shown = host[:_SHOWN_CHARS]
    raise HostRefused(
        f"the host {shown!r} is none of this machine's names, and this worker asks for no API key, so "
        "it answers only localhost, IP addresses and EMBEDDING_HOST. Behind a proxy or another name, "
        "add that name to EMBEDDING_ALLOWED_HOSTS, or ask for keys (EMBEDDING_API_KEYS=required)",
        host=shown,
    )


def check_origin(
    origin: str | None, site: str | None, *, follows_link: bool, host: str, allowed: Sequence[str]
) -> None:
    """Raise OriginRefused if a browser says that another site's page sent a request.

    `site` is Sec-Fetch-Site, which pages cannot set. It precedes `host`, which a proxy may have changed. A
    person who follows a link to a page here is admitted: the other site does not see the answer. Programs
    other than browsers send none of these headers.
    """
    if site == "same-origin" or _ANY in allowed:
        return
    if origin:
        origin = origin.lower()
        is_own = origin.partition("://")[2] == host.lower()
        if is_own or origin.startswith(_OF_PROGRAMS) or origin in map(str.lower, allowed):
            return
    elif site is None or site in _OWN or follows_link:
        return
    shown = (origin or "another site")[:_SHOWN_CHARS]
    remedy = (
        f"CORS_ORIGINS={shown} allows it"
        if origin and "://" in origin
        else "CORS_ORIGINS allows pages by their origin"
    )
    raise OriginRefused(
        f"a page of {shown} sent this; this worker asks for no API key, so it answers only programs "
        f"and its own pages; {remedy}",
        origin=shown,
    )
