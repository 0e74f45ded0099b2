"""Checks a caller's API key and rate before any view."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import ParamSpec, Protocol

from flask import Flask, Response, g, has_request_context, request

from embedshare.access.key_ring import KeyRing
from embedshare.access.keys import Principal
from embedshare.errors import Forbidden, RateLimited, Unauthenticated
from embedshare.web.routes import OPEN, Route

P = ParamSpec("P")

_NO_KEY = (
    "this needs an API key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`; `service_manager.py keys "
    "create` makes one"
)
_UNKNOWN_KEY = "the API key is not valid: it is mistyped, revoked or expired"
#: The network part of an IPv6 address; hosts choose the rest freely.
_IPV6_NETWORK_BITS = 64
#: IPv4 callers of an IPv6-only network are seen there, each by its own address.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Rates(Protocol):
    """Counts requests; raises RateLimited with its fields."""

    @property
    def models(self) -> Collection[str]: ...
    def count(self, subject: str) -> None: ...
    def count_model(self, subject: str, name: str) -> None: ...
    def redis_status(self) -> str: ...


def register(app: Flask, ring: KeyRing | None, rates: Rates | None) -> None:
    """Admit the callers of `ring` alone, and count requests by `rates`; None does neither.

    `g.caller_name` is the key's name from then on. Public routes are not counted.
    """

    @app.before_request
    def enter() -> None:
        route = request.url_rule
        if request.method == "OPTIONS" or route is None:
            return
        assert isinstance(route, Route)
        if route.scopes == OPEN:
            return
        key = None if ring is None else _key()
        caller = None if ring is None else ring.find(key)
        g.principal = caller
        if rates is not None and (caller is None or caller.id is not None):
            g.rate_subject = _network(request.remote_addr) if caller is None else f"key {caller.id}"
            count(rates.count, g.rate_subject)
        if ring is not None:
            admitted = _admitted(caller, key, route.scopes)
            g.caller_name, g.caller = admitted.name, (admitted, key)

    @app.after_request
    def explain(response: Response) -> Response:
        for name, value in g.get("explanation", {}).items():
            response.headers[name] = value
        return response


def principal() -> Principal | None:
    """The owner of the request's key; None without one, and outside a request."""
    caller: Principal | None = g.get("principal") if has_request_context() else None
    return caller


def rate_subject() -> str | None:
    """The caller by whom the request's rates are counted; None if they are not."""
    subject: str | None = g.get("rate_subject") if has_request_context() else None
    return subject


def client_address() -> str | None:
    """The client's address as the trusted proxies tell it; None if they tell none."""
    parsed = _address(request.remote_addr)
    return None if parsed is None else str(parsed)


def is_allowed(*scopes: str) -> bool:
    """Whether the request's key has `admin` or one of `scopes`; true in a worker that asks for no keys."""
    caller, _ = g.get("caller", (None, None))
    return caller is None or bool(caller.scopes.intersection(("admin", *scopes)))


def require(*scopes: str) -> None:
    """For a part of a route that needs more than the route. Raises Forbidden unless `is_allowed`."""
    if not is_allowed(*scopes):
        caller, key = g.caller
        _admitted(caller, key, scopes)


def owner() -> str:
    """The owner of what the request creates: its key, whatever that key's name; empty without keys."""
    caller, _ = g.get("caller", (None, None))
    if caller is None:
        return ""
    return f"name {caller.name}" if caller.id is None else f"key {caller.id}"


def key_in(header: Callable[[str], str | None]) -> str | None:
    """The key in one of the headers that clients use; `header` is asked by names as AUTHORIZATION, X_API_KEY.

    Never from the address, which logs and browsers keep.
    """
    scheme, _, token = (header("AUTHORIZATION") or "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return header("X_API_KEY") or header("API_KEY")


def _key() -> str | None:
    return key_in(lambda name: request.headers.get(name.replace("_", "-")))


def _admitted(caller: Principal | None, key: str | None, needed: tuple[str, ...]) -> Principal:
    """The caller, if the key is valid for this.

    Raises Unauthenticated, Forbidden, with the headers of RFC 6750.
    """
    if caller is None:
        fault = "" if key is None else ', error="invalid_token"'
        g.explanation = {"WWW-Authenticate": f'Bearer realm="embedshare"{fault}'}
        raise Unauthenticated(_NO_KEY if key is None else _UNKNOWN_KEY)
    if not caller.scopes.intersection(("admin", *needed)):
        scopes = " or ".join(needed)
        g.explanation = {
            "WWW-Authenticate": f'Bearer realm="embedshare", error="insufficient_scope", scope="{needed[0]}"'
        }
        raise Forbidden(
            f"the API key {caller.name!r} needs the scope {scopes} for this; it has "
            f"{', '.join(sorted(caller.scopes))}",
            scopes=list(needed),
        )
    return caller


def count(counts: Callable[P, None], *counted: P.args, **named: P.kwargs) -> None:
    """Count a request by `counts`; its RateLimited gets the headers of the answer."""
    try:
        counts(*counted, **named)
    except RateLimited as error:
        limit, _, _ = error.fields["limit"].partition("/")
        g.explanation = {
            "RateLimit-Limit": limit,
            "RateLimit-Remaining": "0",
            "RateLimit-Reset": str(error.fields["retry_after_s"]),
        }
        raise


def _network(address: str | None) -> str:
    """The subject of a caller's rate: an IPv4 address in any spelling, or a network of IPv6 addresses."""
    parsed = _address(address)
    if parsed is None:
        return "address unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        network = ipaddress.ip_network((int(parsed), _IPV6_NETWORK_BITS), strict=False)
        return f"address {network.network_address}"
    return f"address {parsed}"


@lru_cache(maxsize=1024)
def _address(written: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A caller's address.

    Proxies write `address:port` and `[address]:port` too, and a dual-stack socket shows an IPv4 caller as an
    IPv6 address.
    """
    try:
        parsed = ipaddress.ip_address(_without_port(written or ""))
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv4Address):
        return parsed
    if parsed.ipv4_mapped is None and parsed in _NAT64:
        return ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    return parsed.ipv4_mapped or parsed


def _without_port(address: str) -> str:
    """The address alone, without a port, brackets, or the zone of a link-local one."""
    address = address.strip()
    if address.startswith("["):
        address = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        address = address.partition(":")[0]
    return address.partition("%")[0]
