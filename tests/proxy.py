"""A TCP proxy on loopback that treats the bytes between a client and a server as a test prescribes."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

#: Take bytes as they arrive and yield the pieces to send on; may raise Stall, Reset or End.
Treatment = Callable[[bytes], Iterator[bytes]]


class Stall(Exception):
    """From here on the proxy passes nothing on, and the connection stays open."""


class Reset(Exception):
    """From here on the connection is reset (RST), without a FIN."""


class End(Exception):
    """From here on the connection is closed (FIN)."""


class Proxy:
    """Relay between clients and a server; `on_request` and `on_answer` treat the bytes that arrive next.

    The proxy drops a treatment that has raised, unless `persists`: then it applies to later connections too.
    """

    def __init__(self, server_port: int) -> None:
        self.on_request: Treatment | None = None
        self.on_answer: Treatment | None = None
        self.persists = False
        self.answers = bytearray()  # bytes that the server has sent
        self.opened = 0  # connections that clients have opened
        self._server_port = server_port
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def heal(self) -> None:
        """Pass everything on again, on connections that are neither stalled nor closed."""
        self.on_request = self.on_answer = None
        self.persists = False

    def close(self) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):  # already closed
                sock.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._server_port))
            self.opened += 1
            self._sockets += [near, far]
            threading.Thread(target=self._join, args=(near, far), daemon=True).start()

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        """Pass bytes between two sockets in one thread: a socket that another one waits on is not reset."""
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stalled: set[socket.socket] = set()
        with near, far:
            try:
                while True:
                    for source in select.select([near, far], [], [])[0]:
                        data = source.recv(1 << 16)
                        if not data:
                            return
                        if source not in stalled:
                            self._pass_on(data, source is far, near, far, stalled)
            except Reset:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except (End, OSError):
                pass

    def _pass_on(
        self,
        data: bytes,
        is_answer: bool,
        near: socket.socket,
        far: socket.socket,
        stalled: set[socket.socket],
    ) -> None:
        if is_answer:
            self.answers += data
        treatment = self.on_answer if is_answer else self.on_request
        try:
            for piece in treatment(data) if treatment else (data,):
                (near if is_answer else far).sendall(piece)
        except (Stall, Reset, End) as told:
            if not self.persists:
                self.heal()
            if not isinstance(told, Stall):
                raise
            stalled.add(far if is_answer else near)


def cut(after: int, then: type[Exception]) -> Treatment:
    """Pass on `after` bytes, then raise."""
    left = after

    def treat(data: bytes) -> Iterator[bytes]:
        nonlocal left
        piece, left = data[:left], max(0, left - len(data))
        yield piece
        if not left:
            raise then

    return treat


def in_single_bytes(pause_s: float) -> Treatment:
    def treat(data: bytes) -> Iterator[bytes]:
        for byte in data:
            yield bytes([byte])
            time.sleep(pause_s)

    return treat


def delayed(seconds: float) -> Treatment:
    def treat(data: bytes) -> Iterator[bytes]:
        time.sleep(seconds)
        yield data

    return treat


def instead(earlier: bytes) -> Treatment:
    """Send these bytes in place of each piece that arrives."""
    return lambda data: iter([earlier])


def besides(earlier: bytes) -> Treatment:
    """Send these bytes after each piece that arrives."""
    return lambda data: iter([data, earlier])
