"""A worker's listening socket, which the supervisor opens and keeps open while it restarts the worker.

Connections that arrive between the old process and the new one wait in the socket's queue. Without it their
port would be closed for a second: a proxy would answer 502, and avoid the worker for a while.
"""

from __future__ import annotations

import ipaddress
import os
import socket

from embedshare import platforms

VARIABLE = "EMBEDSHARE_LISTENER"
#: Connections that the socket's queue holds.
BACKLOG = 1024


def hold(host: str, port: int) -> socket.socket | None:
    """The socket that a worker at this address is started with.

    None on Windows, for a host name (a worker listens on all of its addresses), and if the port cannot be
    bound. The worker then listens by itself, or logs why it cannot.
    """
    if not platforms.PASSES_SOCKETS or platforms.address_family(host) is None:
        return None
    try:
        return platforms.exclusive_listener(host, port, BACKLOG)
    except OSError:
        return None


def environment(listener: socket.socket | None) -> dict[str, str]:
    """Variables that tell the child of this socket."""
    return {} if listener is None else {VARIABLE: str(listener.fileno())}


def take(host: str, port: int) -> socket.socket | None:
    """The socket that this process was started with; None without one, or if it is another address's."""
    given = os.environ.pop(VARIABLE, None)
    if given is None:
        return None
    listener = socket.socket(fileno=int(given))
    listener.set_inheritable(False)
    if not _is_at(listener, host, port):
        listener.close()
        return None
    return listener


def _is_at(listener: socket.socket, host: str, port: int) -> bool:
    """Whether a socket listens there; an IPv6 address has several spellings."""
    own_host, own_port = listener.getsockname()[:2]
    try:
        return bool(own_port == port and ipaddress.ip_address(own_host) == ipaddress.ip_address(host))
    except ValueError:  # a host's name
        return False
