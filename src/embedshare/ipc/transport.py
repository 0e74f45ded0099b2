"""Sockets with deadlines and size limits, and the Listener/Client pair for `multiprocessing.managers`.

The framing (four bytes of length, big-endian, then the message) and the handshake are those of
`multiprocessing.connection`, whose authentication runs over `send_bytes` and `recv_bytes` unchanged. Ours
adds: pickle is never read, a message's size is checked before it is read, and every wait has a limit.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from embedshare import platforms
from embedshare.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    ProtocolError,
    ServerHung,
    ServerUnavailable,
)
from embedshare.identity import ModelDescription
from embedshare.ipc import handshake

_LENGTH = struct.Struct("!i")
_READ_AHEAD = 64 * 1024
_HANDSHAKE_FRAME = 256  # what multiprocessing.connection itself allows before authentication
_JOIN_BELOW = 64 * 1024  # smaller rows are copied behind their message: one system call instead of two

#: A running server accepts a connection and proves its key within this many seconds.
MEETING_S = 5.0
#: `on_silence` is called after each period of this many seconds without a byte to or from the other end.
PATIENCE_S = 2.0
_TCP = (socket.AF_INET, socket.AF_INET6)
#: Connections that wait to be accepted. The manager asks for 16, fewer than the workers that may start at
#: once.
_BACKLOG = 512
#: The address that reaches a server listening on every address.
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}
#: The peer's address of a connection over a file.
_THIS_MACHINE = "127.0.0.1"


class Connection:
    """One stream of messages. Used by one thread at a time; after any error it is only good for `close()`."""

    def __init__(self, sock: socket.socket, meets_signals: bool = False, peer: str = "") -> None:
        self.peer = peer
        """The address at the other end of a connection that was accepted."""
        if sock.family in _TCP:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            platforms.keep_alive(sock)
        sock.settimeout(None)
        self._sock = sock
        self._kernel_waits = not meets_signals and platforms.waits_in_kernel(sock)
        self.model: ModelDescription | None = None
        """At the client's end: the only model of a server before version 3."""
        self.met: set[object] = set()
        """At the client's end: the users of such a model that have met it on this connection."""
        self.protocol = 1
        """At the client's end: the version of the messages on this connection, see protocol.py."""
        self.last_answer = time.monotonic()
        """At the client's end: when the server last answered here."""
        self._deadline: float | None = None
        self._on_silence: Callable[[float], None] | None = None
        self._timeouts = {socket.SO_RCVTIMEO: 0.0, socket.SO_SNDTIMEO: 0.0}
        self._buffer = memoryview(bytearray(_READ_AHEAD))
        self._start = self._end = 0

    def set_deadline(self, deadline: float | None, on_silence: Callable[[float], None] | None = None) -> None:
        """Reads and writes raise DeadlineExceeded after this moment of `time.monotonic()`; None waits for
        ever.

        Before that, `on_silence(deadline)` is called after each PATIENCE_S without a byte. An error that it
        raises ends the wait.
        """
        self._deadline = deadline
        self._on_silence = on_silence

    def send_bytes(self, data: bytes | memoryview, *raw: memoryview) -> None:
        """Send one message, and the raw bytes that it announces."""
        message = _LENGTH.pack(len(data)) + data
        for part in raw:
            if part.nbytes <= _JOIN_BELOW:
                message += part
                continue
            if message:
                self._send(message)
            self._send(part)
            message = b""
        if message:
            self._send(message)

    def recv_bytes(self, maxlength: int = _HANDSHAKE_FRAME) -> bytes | bytearray:
        """Receive one message of at most `maxlength` bytes.

        Raises EOFError at a clean end, ProtocolError for a longer message.
        """
        return self.recv_announced(self.recv_size(maxlength))

    def recv_size(self, maxlength: int) -> int:
        """The size of the next message, which `recv_announced` then receives.

        Raises EOFError at a clean end, ProtocolError if it exceeds `maxlength`.
        """
        if self._end - self._start < 4:
            self._fill(4)
        (size,) = _LENGTH.unpack_from(self._buffer, self._start)
        if not 0 <= size <= maxlength:
            shown = f"{size:,} bytes" if size >= 0 else "over 2 GiB"
            raise ProtocolError(f"a message of {shown} was announced; at most {maxlength:,} bytes are read")
        self._start += 4
        return int(size)

    def recv_announced(self, size: int) -> bytes | bytearray:
        """The message whose size `recv_size` returned."""
        if size <= _READ_AHEAD:
            if self._end - self._start < size:
                self._fill(size)
            message = bytes(self._buffer[self._start : self._start + size])
            self._start += size
            return message
        large = bytearray(size)
        self.recv_into(memoryview(large))
        return large

    def recv_into(self, target: memoryview) -> None:
        """Fill `target` with the next bytes."""
        buffered = min(self._end - self._start, target.nbytes)
        target[:buffered] = self._buffer[self._start : self._start + buffered]
        self._start += buffered
        while buffered < target.nbytes:
            received = self._receive(target[buffered:])
            if not received:
                raise ConnectionResetError("the connection ended within a message")
            buffered += received

    def wait_for_message(self) -> None:
        """Wait, without a deadline, until the next message has begun. Raises EOFError at a clean end."""
        if self._end == self._start:
            self._deadline = None
            self._fill(1)

    def peer_closed(self) -> bool:
        """Whether the other end is gone, without waiting."""
        return self._end == self._start and platforms.peer_closed(self._sock)

    def hang_up(self) -> None:
        """End the stream and wake the thread that waits on it, which then closes this end."""
        with suppress(OSError):  # already closed by the other end
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end, and wake a thread that waits on it."""
        self.hang_up()
        self._sock.close()

    def abandon(self) -> None:
        """Close this process's handle alone: in a forked child the stream stays the parent's."""
        self._sock.close()

    def _fill(self, size: int) -> None:
        """Read until the buffer has at least `size` bytes (at most _READ_AHEAD)."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start + size > _READ_AHEAD:
            self._buffer[: self._end - self._start] = self._buffer[self._start : self._end]
            self._start, self._end = 0, self._end - self._start
        while self._end - self._start < size:
            received = self._receive(self._buffer[self._end :])
            if not received:
                if self._end == self._start:
                    raise EOFError("the other end closed the connection")
                raise ConnectionResetError("the connection ended within a message")
            self._end += received

    def _receive(self, into: memoryview) -> int:
        while True:
            self._limit(socket.SO_RCVTIMEO)
            try:
                return self._sock.recv_into(into)
            except (BlockingIOError, TimeoutError) as error:
                self._after_silence(error, "no answer in time")

    def _send(self, data: bytes | memoryview) -> None:
        while True:
            self._limit(socket.SO_SNDTIMEO)
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, TimeoutError) as error:
                self._after_silence(error, "the message could not be sent in time")
                continue
            if sent == len(data):
                return
            data = memoryview(data)[sent:]

    def _after_silence(self, waited: OSError, too_late: str) -> None:
        """Continue the wait, or raise the error that ends it."""
        if platforms.connection_given_up(waited):
            raise waited
        deadline = self._deadline
        if self._on_silence is None or deadline is None or time.monotonic() >= deadline:
            raise DeadlineExceeded(too_late) from None
        self._on_silence(deadline)

    def _limit(self, option: int) -> None:
        """Let the kernel end the next wait at the deadline, or when `on_silence` is due.

        Python's own socket timeouts cost two system calls an operation, the kernel's one when they change.
        Between calls with about the same time left they stay: a wait may end up to 1% and 20 ms late. A
        signal restarts a wait with all of the kernel's time, so a thread that gets signals has Python's. So
        has a greenlet, whose waits are not the kernel's.
        """
        left = _time_left(self._deadline) or 0.0
        if self._on_silence is not None:
            left = min(left, PATIENCE_S)
        current = self._timeouts[option]
        if left <= current <= left * 1.01 + 0.02 if left else current == 0.0:
            return
        if self._kernel_waits:
            platforms.set_kernel_timeout(self._sock, option, left)
            self._timeouts[option] = left
        else:
            self._sock.settimeout(left or None)
            self._timeouts = dict.fromkeys(self._timeouts, left)


def _time_left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("the call's time is over")
    return left


class Listener:
    """The server's end, as multiprocessing.managers.Server uses it."""

    def __init__(self, address: tuple[str, int], backlog: int = 16) -> None:
        host, port = address
        self._sock = platforms.exclusive_listener(host, port, max(backlog, _BACKLOG))
        self.address: tuple[str, int] = self._sock.getsockname()[:2]

    def accept(self) -> Connection:
        """The next connection, not yet authenticated."""
        sock, address = self._sock.accept()
        return Connection(sock, peer=str(address[0]))

    def close(self) -> None:
        """Stop listening; a thread in accept() gets an OSError."""
        with suppress(OSError):  # some systems cannot shut down a listening socket; closing is enough there
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class LocalListener:
    """The server's second end, a file: a call over it takes a third less of both processes' time than over
    TCP on loopback."""

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self._sock = sock
        self._path = path

    @classmethod
    def open(cls, path: Path) -> LocalListener | None:
        """The listener of `path`; None if there can be none (see platforms.local_listener)."""
        sock = platforms.local_listener(path, _BACKLOG)
        return None if sock is None else cls(sock, path)

    def accept(self) -> Connection:
        """The next connection, not yet authenticated."""
        return Connection(self._sock.accept()[0], peer=_THIS_MACHINE)

    def close(self) -> None:
        """Stop listening, as Listener does, and remove the file."""
        self._path.unlink(missing_ok=True)
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def Client(  # noqa: N802
    address: tuple[str, int], authkey: bytes, deadline: float | None = None, local: Path | None = None
) -> Connection:
    """An authenticated connection to the server at `address`, over the file `local` if it listens there too.

    Raises ServerUnavailable if none answers, AuthenticationFailed if the keys differ, DeadlineExceeded.
    """
    host, port = _REACHED_AT.get(address[0], address[0]), address[1]
    meeting = time.monotonic() + MEETING_S
    met_by = meeting if deadline is None else min(deadline, meeting)
    try:
        in_main_thread = threading.current_thread() is threading.main_thread()
        sock = None if local is None else platforms.connected_locally(local, _time_left(met_by))
        sock = _connect(host, port, met_by) if sock is None else sock
        connection = Connection(sock, meets_signals=in_main_thread)
    except TimeoutError:
        raise _not_met(host, port, deadline) from None
    except OSError as error:
        message = f"no model server at {host}:{port} ({error.strerror or error})"
        raise ServerUnavailable(message, host=host, port=port) from None
    connection.set_deadline(met_by)
    try:
        handshake.prove(connection, authkey)
        handshake.demand_proof(connection, authkey)
    except handshake.REFUSALS:
        connection.close()
        raise AuthenticationFailed(
            f"the model server at {host}:{port} holds another key, or is not a model server"
        ) from None
    except DeadlineExceeded:
        connection.close()
        raise _not_met(host, port, deadline) from None
    except (EOFError, OSError):
        connection.close()
        raise ServerUnavailable(
            f"the server at {host}:{port} ended the handshake", host=host, port=port
        ) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _not_met(host: str, port: int, deadline: float | None) -> ServerHung | DeadlineExceeded:
    """A hanging server counts as down; only a call past its own deadline has exceeded it."""
    if deadline is not None and time.monotonic() >= deadline:
        return DeadlineExceeded(f"no connection to the model server at {host}:{port} in time")
    return ServerHung(f"the model server at {host}:{port} does not answer", host=host, port=port)


def _connect(host: str, port: int, deadline: float | None) -> socket.socket:
    """A connected socket, through the first of the host's addresses that answers. Raises OSError."""
    failure: OSError | None = None
    for family, address in platforms.addresses(host, port):
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.settimeout(_time_left(deadline))
            sock.connect(address)
            return sock
        except OSError as error:
            if sock is not None:
                sock.close()
            failure = failure or error
    raise failure or OSError(f"{host} has no address")
