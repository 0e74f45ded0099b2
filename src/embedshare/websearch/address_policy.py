"""The addresses that pages may be fetched from: public ones over http and https, and allowed hosts.

A name is resolved once, here; the connection then goes to the checked addresses, so that a changed name (DNS
rebinding) has no effect.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

import idna
import msgspec

from embedshare.errors import AddressRefused, FetchFailed
from embedshare.websearch.dns import resolve

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: The addresses of a host and a port, as text, by a moment of `time.monotonic()`. Raises OSError if there are
#: none, and FetchFailed if it takes longer.
Resolve = Callable[[str, int, float], list[str]]

#: Ports of web sites. Others would let a page's link reach a mail server or a database.
PORTS = frozenset({80, 443, 8000, 8080, 8443})
LONGEST_URL = 4096
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
#: Anycast relays of 6to4, which some versions of Python call global.
_SIX_TO_FOUR_RELAYS = ipaddress.ip_network("192.88.99.0/24")


class Target(msgspec.Struct, frozen=True):
    """The address that a page is fetched from."""

    url: str
    scheme: str
    host: str
    port: int
    addresses: tuple[str, ...]
    """At least one, all checked, the preferred one first."""

    @property
    def netloc(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.netloc}"


_DEFAULT_PORTS = {"http": 80, "https": 443}


class AddressPolicy:
    """The rule, with internal hosts that a setting names (`host` or `host:port`, commas).

    `only_named_in`: the name of that setting if no other host may be reached.
    """

    def __init__(
        self, allowed_hosts: str = "", resolve: Resolve = resolve, only_named_in: str | None = None
    ) -> None:
        self._resolve = resolve
        self._only_named_in = only_named_in
        self._allowed = frozenset(filter(None, map(_allowed_entry, allowed_hosts.split(","))))

    def target(self, url: str, deadline: float) -> Target:
        """The addresses of `url`, by the moment `deadline` of `time.monotonic()`.

        Raises AddressRefused, and FetchFailed for a name without an address, or without one in time.
        """
        parts, host, port = _split(url)
        literal = _literal(host, url)
        allowed = not self._allowed.isdisjoint({(host, port), (host, None)})
        if not allowed and self._only_named_in is not None:
            raise AddressRefused(f"{self._only_named_in} does not name {host}", url=url)
        if not allowed and port not in PORTS:
            raise AddressRefused(f"port {port} is not one that pages are fetched from", url=url)
        try:
            found = [str(literal)] if literal is not None else self._resolve(host, port, deadline)
        except (OSError, UnicodeError) as error:
            raise FetchFailed(f"{host} has no address ({type(error).__name__})") from None
        if not found:
            raise FetchFailed(f"{host} has no address")
        for address in found:
            # One internal address among public ones is enough to refuse: the site must not choose the
            # connection's.
            if not allowed and not is_public(_parsed(address, url)):
                raise AddressRefused(f"{host} is not a public address", url=url)
        path = parts.path or "/"
        whole = SplitResult(parts.scheme, _netloc(host, port, parts.scheme), path, parts.query, "").geturl()
        return Target(whole, parts.scheme, host, port, tuple(found))


def is_public(address: Address) -> bool:
    """Whether the address belongs to the public internet, and is not translated to another one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:  # used by networks without IPv4 to reach public IPv4 sites
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.scope_id is not None or address not in _GLOBAL_UNICAST or address in _SIX_TO_FOUR:
            return False
    elif address in _SIX_TO_FOUR_RELAYS:
        return False
    special = address.is_multicast or address.is_reserved or address.is_loopback or address.is_link_local
    return address.is_global and not special and not address.is_private


def _split(url: str) -> tuple[SplitResult, str, int]:
    """The parts, the host in ASCII and lower case, and the port."""
    if len(url) > LONGEST_URL or any(c <= " " or c == "\\" or c == "\x7f" for c in url):
        raise AddressRefused(
            "the address is too long, or holds characters that are not allowed", url=url[:LONGEST_URL]
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise AddressRefused(f"not a web address ({type(error).__name__})", url=url) from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise AddressRefused(f"{parts.scheme or 'no scheme'} is neither http nor https", url=url)
    if "@" in parts.netloc:
        raise AddressRefused("the address holds a user name", url=url)
    host = _ascii(parts.hostname or "", url).rstrip(".")
    if not host:
        raise AddressRefused("the address has no host", url=url)
    return parts, host, _DEFAULT_PORTS[parts.scheme] if port is None else port


def _ascii(host: str, url: str) -> str:
    if host.isascii():
        return host.lower()
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError:
        raise AddressRefused("the host name is not valid", url=url) from None


def _literal(host: str, url: str) -> Address | None:
    """The IP address that the host is written as; None for a name.

    Decimal, octal, hexadecimal and shortened notations (2130706433, 0177.0.0.1, 0x7f.1) are refused:
    libraries read them differently, and no honest link has one.
    """
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    last = host.rpartition(".")[2]
    if ":" in host or "%" in host or last.isdecimal() or last.lower().startswith("0x"):
        raise AddressRefused(f"{host} is an address in an unusual notation", url=url)
    return None


def _parsed(address: str, url: str) -> Address:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        raise AddressRefused(f"{address} is not an address", url=url) from None


def _netloc(host: str, port: int, scheme: str) -> str:
    return Target("", scheme, host, port, ()).netloc


def _allowed_entry(entry: str) -> tuple[str, int | None] | None:
    entry = entry.strip().lower()
    bare = entry.strip("[]")
    if bare.count(":") > 1 and not entry.startswith("["):
        return bare, None  # an IPv6 address
    host, colon, port = entry.rpartition(":")
    if colon and port.isdecimal() and not (host.startswith("[") and not host.endswith("]")):
        return host.strip("[]"), int(port)
    return (bare, None) if bare else None
