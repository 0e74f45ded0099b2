"""Tells whether a host means this machine. For a request's Host header this guards against DNS rebinding.

A page can make its own name resolve to this machine's address. Its visitor's browser then takes a server here
for the page's site and lets the page read it. Such a request has the page's name as its host. An IP address
as the host is safe: a page cannot make one resolve to another machine.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from functools import cache

#: Any host, in a list of allowed ones.
ANY_HOST = "*"
_HEADER = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]*))(?::[0-9]*)?")
#: RFC 6761: resolvers map these to this machine's loopback, and no registry assigns them.
_LOCALHOST = "localhost"


def means_this_machine(header: str, allowed: Sequence[str] = ()) -> bool:
    """Whether a Host header names this machine, or one of the `allowed` hosts.

    This machine is an IP address, localhost or a name below it, and what the system calls itself. An allowed
    host `*.example` is each name below it, `*` any. An empty header is of HTTP/1.0, which no browser sends.
    """
    found = _HEADER.fullmatch(header.strip().lower())
    if found is None or ANY_HOST in allowed:
        return ANY_HOST in allowed
    if found[1] is not None:
        return _is_address(found[1])
    name = found[2].removesuffix(".")
    own = ("", _LOCALHOST, _machine_name())
    return name in own or _is_address(name) or name.endswith(f".{_LOCALHOST}") or _is_among(name, allowed)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen at; a name may come to mean any address."""
    try:
        return host == _LOCALHOST or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_among(name: str, allowed: Sequence[str]) -> bool:
    return any(
        name == one or (one.startswith("*.") and name.endswith(one[1:])) for one in map(str.lower, allowed)
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@cache
def _machine_name() -> str:
    return socket.gethostname().lower()
