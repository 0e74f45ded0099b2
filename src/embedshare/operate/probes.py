"""The supervisor's liveness probes, which busy processes answer too."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from embedshare import platforms
from embedshare.errors import DeadlineExceeded, EmbedshareError, MissingDependency, ServerUnavailable
from embedshare.ipc import authkey, codec
from embedshare.ipc.callers import SUPERVISOR, this_process
from embedshare.ipc.connection import Connections
from embedshare.operate.processes import reached_at
from embedshare.settings import Settings
from embedshare.supervise.liveness import ANSWER_S

#: OPTIONS * is HTTP's ping (RFC 9110, 9.3.7). A worker's loop answers it, also while all of its threads are
#: busy.
_PING = b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"
_PONG = b"HTTP/1.1 204 "


class WorkerProbe:
    """Probes one web worker on a connection that stays open: a live worker may have reached its limit of
    connections."""

    def __init__(self, host: str, port: int) -> None:
        self._address = reached_at(host), port
        self._socket: socket.socket | None = None

    def __call__(self) -> bool:
        limit = time.monotonic() + ANSWER_S
        try:
            if self._socket is not None:
                try:
                    return self._ask(self._socket, limit)
                except TimeoutError:
                    raise
                except OSError:
                    self._close()  # the worker may close an idle connection: try a new one
            self._socket = socket.create_connection(self._address, timeout=limit - time.monotonic())
            return self._ask(self._socket, limit)
        except OSError as error:
            self._close()
            return platforms.is_own_shortage(error)

    def _ask(self, sock: socket.socket, limit: float) -> bool:
        """Whether it answers; raises OSError if the connection does not lead to it."""
        sock.settimeout(max(0.001, limit - time.monotonic()))
        sock.sendall(_PING)
        answer = sock.recv(4096)
        if not answer:
            raise ConnectionResetError
        if not answer.startswith(_PONG):
            self._close()  # another program's answer, which may continue
        return answer.startswith(b"HTTP/")

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class ServerProbe:
    """Asks the model server for its calls in flight, which a separate thread answers."""

    def __init__(self, settings: Settings) -> None:
        self._connections = Connections(
            settings.server, lambda: authkey.client_key(settings), lambda: this_process(SUPERVISOR)
        )

    def __call__(self) -> bool:
        try:
            query = codec.Query(*codec.UNSENT, "active_operations")
            self._connections.call(query, time.monotonic() + ANSWER_S)
        except (ServerUnavailable, DeadlineExceeded) as error:
            return platforms.is_own_shortage(error)
        except EmbedshareError:
            pass  # it answered: another key, or too many connections
        return True


def sessions_serve(settings: Settings) -> Callable[[], bool]:
    """A function that asks the session server for its health.

    Raises MissingDependency without the packages of sessions.
    """
    try:
        from embedshare.grpc.client import serves  # gRPC, only in a supervisor of sessions
    except ImportError as error:
        raise MissingDependency(
            f"--sessions needs a package that is not installed ({error}): pip install 'embedshare[sessions]'"
        ) from None
    return lambda: serves(settings, ANSWER_S)
