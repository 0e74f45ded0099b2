"""Clients of Qdrant servers: one for each server and key, shared by stores, and closed with the last."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from embedshare.errors import StoreInUse


class Server(NamedTuple):
    """What stores with one client have in common."""

    url: str
    api_key: str | None
    prefer_grpc: bool
    timeout_s: float


class SharedClients:
    """The clients of this process. Thread-safe."""

    def __init__(self, connect: Callable[[Server], Any]) -> None:
        """`connect` makes a client, without asking its server."""
        self._connect = connect
        self._lock = threading.Lock()
        self._clients: dict[Server, Any] = {}
        self._used: dict[Server, set[str]] = {}

    def lend(self, server: Server, collection: str) -> Any:
        """The server's client, for one collection.

        Raises StoreInUse if a store of this process has the collection: each would delete the other's
        uploads.
        """
        with self._lock:
            users = [used for other, used in self._used.items() if other.url == server.url]
            if any(collection in used for used in users):
                raise StoreInUse(f"another store of this process has the collection {collection!r} open")
            if server not in self._clients:
                self._clients[server] = self._connect(server)
            self._used.setdefault(server, set()).add(collection)
            return self._clients[server]

    def give_back(self, server: Server, collection: str) -> None:
        """End the use; the last one closes the client. Unknown uses are ignored."""
        with self._lock:
            used = self._used.get(server, set())
            used.discard(collection)
            unused = self._clients.pop(server, None) if not used else None
            if not used:
                self._used.pop(server, None)
        if unused is not None:
            unused.close()
