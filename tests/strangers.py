"""Hostile peers: the bytes that they send, and a check that the server is unharmed."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from embeddingClient import EmbeddingClient
from embedshare.ipc.transport import Client, Connection
from tests.processes import ModelServer, wait_for

TEXT = "who asks is answered rightly"
#: An unharmed server keeps no more than this of a stranger's bytes.
SPARE_MB = 100


class Bomb:
    """An object that creates the folder `path` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def bombs(path: Path) -> list[bytes]:
    """Return a pickle of each protocol that creates the folder `path` when it is loaded."""
    return [pickle.dumps(Bomb(path), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


def frame(data: bytes) -> bytes:
    return struct.pack("!i", len(data)) + data


def stranger(server: ModelServer) -> socket.socket:
    """A connection that has proved no key."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def key_holder(server: ModelServer) -> Connection:
    """A connection that has proved its key."""
    connection = Client(("127.0.0.1", server.port), (server.folder / "authkey").read_bytes(), soon())
    connection.set_deadline(soon())
    return connection


def soon() -> float:
    return time.monotonic() + 20


def rest_of(sock: socket.socket) -> bytes:
    """Return the bytes that the server sends until it closes the connection; fail if it does not close it."""
    sock.settimeout(20)
    said = b""
    while True:
        try:
            data = sock.recv(65536)
        except ConnectionError:
            return said
        if not data:
            return said
        said += data


def shape_of(server: ModelServer) -> tuple[int, int, int]:
    """The server's threads, open files and resident MB."""
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return process.num_threads(), files, process.memory_info().rss >> 20


@contextmanager
def unharmed(server: ModelServer, client: EmbeddingClient, expected: Any) -> Iterator[None]:
    """Fail unless the server is intact after the block: it answers correctly and logged no traceback.

    It has no more open files, little more memory, and few more threads, since it starts its own on demand.
    """
    client.encode(TEXT)
    threads, files, megabytes = shape_of(server)
    said = len(server.said())
    yield
    assert float(client.encode(TEXT) @ expected) > 0.9995

    def nobody_is_left() -> bool:
        now = shape_of(server)
        return now[0] <= threads + 4 and now[1] <= files

    wait_for(nobody_is_left, 20, "the end of the strangers' threads and connections")
    more = shape_of(server)[2] - megabytes
    assert more < SPARE_MB, f"{more} MB more than before"
    assert b"Traceback" not in server.said(said)
    assert not server.ended
