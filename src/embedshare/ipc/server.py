"""The server's end: `multiprocessing.managers.Server` with our serializer, limits and calls.

The manager gives the listener, the handshake's key and the process's life cycle. Its own verbs (create,
shutdown, incref and the like) cannot be called; a connection carries declared calls alone, one after another.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import managers
from pathlib import Path
from typing import Protocol

from loguru import logger

from embedshare.errors import (
    EmbedshareError,
    EngineFailed,
    InvalidInput,
    ModelSwapped,
    Overloaded,
    ProtocolError,
)
from embedshare.ipc import codec, handshake, protocol
from embedshare.ipc.byte_budget import ByteBudget
from embedshare.ipc.callers import Callers
from embedshare.ipc.pending_handshakes import PendingHandshakes
from embedshare.ipc.transport import Client, Connection, Listener, LocalListener
from embedshare.settings import ServerSettings
from embedshare.telemetry import request_ids, tracing
from embedshare.telemetry.calls import OK

#: Connections without a proved key. More wait unaccepted, see pending_handshakes.py.
MAX_UNAUTHENTICATED = 64
#: Seconds in which a begun message must be whole, and an answer taken.
MESSAGE_S = 30.0
#: The outcome of a call whose caller did not take its answer.
UNDELIVERED = "undelivered"

#: An answer, and the raw bytes that follow it.
Answered = tuple[codec.Answer, Sequence[memoryview]]

#: The name under which multiprocessing.managers finds our sockets and messages.
SERIALIZER = "embedshare"
managers.listener_client[SERIALIZER] = (Listener, Client)  # type: ignore[attr-defined]


class Session(Protocol):
    """Answers one connection's calls."""

    def answer(
        self,
        call: codec.Call | codec.Routed,
        raw: bytearray,
        received: float,
        caller: int,
        is_gone: Callable[[], bool],
    ) -> Answered:
        """The answer to `call`, which `raw` followed, and the raw bytes that follow the answer.

        `received`: `time.monotonic()` at its arrival; `caller`: a number for its connection; `is_gone` tells,
        without waiting, whether the caller has left. Raises an EmbedshareError for the caller; ModelSwapped
        for a call of another model than the served one, after which the connection is closed unless the call
        was Routed.
        """

    def answer_bytes(self, call: codec.Call | codec.Routed) -> int:
        """The bytes that the answer to `call` is expected to hold, as far as they matter."""


class Service(Protocol):
    """Opens a session for each connection."""

    def session(self) -> Session:
        """A session for a new connection."""

    def note_wire(self, decode_s: float, encode_s: float) -> None:
        """Record the time to receive and decode a call that got rows, and to encode its answer."""


class CallServer(managers.Server):
    """Serves one Service on an address until `stop_event` is set. Listens from its construction on."""

    listener: Listener
    authkey: bytes
    public: list[str] = []  # noqa: RUF012  the manager's own name for the verbs that a caller may use

    def __init__(
        self,
        service: Service,
        settings: ServerSettings,
        authkey: bytes,
        callers: Callers,
        stop_event: threading.Event,
        local: Path | None = None,
    ) -> None:
        """`local`: the file that it listens on too, where that is possible."""
        super().__init__({}, settings.address, authkey, SERIALIZER)
        self._local = None if local is None else LocalListener.open(local)
        self.stop_event = stop_event
        self._service = service
        self._settings = settings
        self._byte_budget = ByteBudget(settings.max_held_bytes)
        self._answer_budget = ByteBudget(settings.max_held_bytes)
        self._pending_handshakes = PendingHandshakes(MAX_UNAUTHENTICATED)
        self._connections: set[Connection] = set()
        self._busy = 0
        self._busy_lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._callers = callers
        self._outcomes: Counter[tuple[str, str]] = Counter()

    def serve_until_stopped(self) -> None:
        """Accept and answer until `stop_event` is set; then accept no more."""
        listeners: list[Listener | LocalListener] = [self.listener]
        if self._local is not None:
            listeners.append(self._local)
        for listener in listeners:
            accept = partial(self._accept_from, listener)
            threading.Thread(target=accept, name="accepter", daemon=True).start()
        while not self.stop_event.wait(0.5):
            continue  # Windows runs signal handlers only between waits
        for listener in listeners:
            listener.close()

    def drain(self, limit_s: float) -> bool:
        """Wait until no call is in flight, at most `limit_s` seconds; then close every connection."""
        limit = time.monotonic() + limit_s
        while self._busy and time.monotonic() < limit:
            time.sleep(0.01)  # runs once in a server's life, so calls need not signal their end
        for connection in list(self._connections):
            connection.close()
        return not self._busy

    @property
    def connections(self) -> int:
        """Connected callers."""
        return len(self._connections)

    def outcomes(self) -> dict[tuple[str, str], int]:
        """Finished calls, by method and outcome: OK, UNDELIVERED or the name of an error's class."""
        with self._busy_lock:
            return dict(self._outcomes)

    def _accept_from(self, listener: Listener | LocalListener) -> None:
        """Accept connections, a thread each."""
        while not self.stop_event.is_set():
            try:
                connection = listener.accept()
            except OSError as error:
                if not self.stop_event.is_set():
                    logger.error("Could not accept a connection: {}", error)
                    self.stop_event.wait(0.1)  # out of file descriptors, as a rule: do not spin
                continue
            self._pending_handshakes.enter(connection)
            number = next(self._numbers)
            work = partial(self.handle_request, connection, number)
            try:
                threading.Thread(target=work, name=f"caller-{number}", daemon=True).start()
            except RuntimeError as error:  # no thread can start: refuse this one and continue
                logger.error("Could not serve a connection: {}", error)
                self._pending_handshakes.leave(connection)
                connection.close()

    def handle_request(self, connection: Connection, caller: int) -> None:  # type: ignore[override]
        """One connection, from its handshake to its end."""
        try:
            if self._authenticate(connection) and self._admit(connection):
                self._callers.join(caller, connection.peer)
                self.serve_client(connection, caller)
        except (EOFError, OSError):
            pass  # the caller left, which is how connections end
        except ModelSwapped as error:
            self._send_failure(connection, 0, error)
        except ProtocolError as error:
            logger.warning("Closed a connection ({})", error)
            self._send_failure(connection, 0, error)
        finally:
            self._connections.discard(connection)
            self._callers.leave(caller)
            connection.close()

    def serve_client(self, connection: Connection, caller: int) -> None:  # type: ignore[override]
        """Receive, decode, answer, encode, send, again; returns by EOFError when the caller leaves."""
        session = self._service.session()
        while not self.stop_event.is_set():
            connection.wait_for_message()
            received = time.monotonic()
            connection.set_deadline(received + MESSAGE_S)
            size = connection.recv_size(self._settings.max_message_bytes)
            with self._byte_budget.of(size):
                self._receive_and_answer(connection, session, size, received, caller)

    def _receive_and_answer(
        self, connection: Connection, session: Session, size: int, received: float, caller: int
    ) -> None:
        connection.set_deadline(time.monotonic() + MESSAGE_S)
        data = connection.recv_announced(size)
        with self._busy_lock:
            self._busy += 1
        ended = "unreadable", ProtocolError.__name__
        try:
            decoded = codec.decode_call(data)
            message = decoded.message if isinstance(decoded, codec.Traced) else decoded
            call = message.call if isinstance(message, codec.Routed) else message
            request_ids.enter(getattr(call, "request_id", None))
            ended = _method_of(call), UNDELIVERED
            size = call.raw_bytes
            if size > self._settings.max_message_bytes:
                allowed = self._settings.max_message_bytes
                raise ProtocolError(f"{size:,} raw bytes were announced; at most {allowed:,} are read")
            with self._byte_budget.of(size):  # its message was small and holds no room
                raw = bytearray(size)
                if size:
                    connection.set_deadline(time.monotonic() + MESSAGE_S)
                    connection.recv_into(memoryview(raw))
                with self._answer_budget.of(session.answer_bytes(message)):
                    if tracing.enabled:
                        outcome = self._answer_traced(connection, session, decoded, raw, received, caller)
                    else:
                        outcome = self._answer_one(connection, session, message, raw, received, caller)
                ended = ended[0], outcome
        except EmbedshareError as error:
            ended = ended[0], type(error).__name__
            raise
        finally:
            request_ids.enter(None)
            with self._busy_lock:
                self._busy -= 1
                self._outcomes[ended] += 1

    def _answer_traced(
        self,
        connection: Connection,
        session: Session,
        decoded: codec.Call | codec.Routed | codec.Traced,
        raw: bytearray,
        received: float,
        caller: int,
    ) -> str:
        """`_answer_one` with a span."""
        message = decoded.message if isinstance(decoded, codec.Traced) else decoded
        call = message.call if isinstance(message, codec.Routed) else message
        with _span(decoded, call, received) as span:
            outcome = self._answer_one(connection, session, message, raw, received, caller)
            if outcome != OK:
                span.fail(outcome)
            return outcome

    def _answer_one(
        self,
        connection: Connection,
        session: Session,
        message: codec.Call | codec.Routed,
        raw: bytearray,
        received: float,
        caller: int,
    ) -> str:
        """Answer a call; returns its outcome."""
        decoded = time.monotonic()
        call = message.call if isinstance(message, codec.Routed) else message
        if not isinstance(call, codec.Query):
            self._callers.count(caller)
        elif call.caller is not None:
            self._callers.introduce(caller, call.caller)
        try:
            version = protocol.offered(message.what) if isinstance(message, codec.Query) else None
            if version is not None:
                protocol.check_client(version)
                message = codec.Query(call.id, call.time_left_s, protocol.DESCRIBE)
            answer, rows = (
                (codec.Reply(call.id, {"protocol": protocol.VERSION}), ())
                if version is not None and version >= protocol.ROUTED
                else session.answer(message, raw, received, caller, connection.peer_closed)
            )
            if version == protocol.ROUTED - 1 and isinstance(answer, codec.Reply):
                answer.value = {"protocol": protocol.VERSION, "model": answer.value}
        except EmbedshareError as error:
            if isinstance(error, ModelSwapped) and not isinstance(message, codec.Routed):
                raise  # the connection's model is no longer served
            level = "WARNING" if error.http_status >= 500 and not isinstance(error, Overloaded) else "DEBUG"
            kind = type(error).__name__
            logger.log(level, "Failed to answer {}: {}: {}", _method_of(call), kind, error.message)
            self._send_failure(connection, call.id, error)
            return kind
        except Exception as error:
            logger.exception("Failed to answer a call")
            failure = EngineFailed(f"the model server failed: {type(error).__name__}")
            self._send_failure(connection, call.id, failure)
            return type(failure).__name__
        answered = time.monotonic()
        data = codec.encode(answer)
        encoded = time.monotonic()
        counts = None if isinstance(answer, codec.Reply) else getattr(answer, "token_counts", None)
        if counts is not None:
            self._service.note_wire(decoded - received, encoded - answered)
        connection.set_deadline(encoded + MESSAGE_S)
        connection.send_bytes(data, *rows)
        took_ms = (encoded - received) * 1e3
        logger.debug("Answered {} of {} texts in {:.1f} ms", _method_of(call), len(counts or ()), took_ms)
        return OK

    def _authenticate(self, connection: Connection) -> bool:
        try:
            if handshake.succeeds(connection, self.authkey, self._settings.handshake_s):
                return True
            logger.warning("Refused a connection from {} (it holds another key)", connection.peer)
            return False
        finally:
            self._pending_handshakes.leave(connection)

    def _admit(self, connection: Connection) -> bool:
        limit = self._settings.max_connections
        if len(self._connections) >= limit:
            error = Overloaded(f"the server holds {limit} connections, its limit", retry_after_s=1.0)
            self._send_failure(connection, 0, error)
            return False
        self._connections.add(connection)
        return True

    def _send_failure(self, connection: Connection, call_id: int, error: EmbedshareError) -> None:
        try:
            connection.set_deadline(time.monotonic() + MESSAGE_S)
            connection.send_bytes(codec.encode(codec.failure(call_id, error)))
        except (OSError, InvalidInput):
            pass  # the caller is gone, or the message quotes a lone surrogate: it cannot be sent


def _span(
    message: codec.Call | codec.Routed | codec.Traced, call: codec.Call, received: float
) -> tracing.Entered:
    """The span of a call; queries and health checks have none, unless they belong to a trace."""
    parent = None
    if isinstance(message, codec.Traced):
        parent = tracing.Parent(message.traceparent, message.tracestate)
        message = message.message
    model, is_check = (message.model, message.is_check) if isinstance(message, codec.Routed) else ("", False)
    if parent is None and (is_check or isinstance(call, codec.Query)):
        return tracing.OFF
    told = {
        tracing.TEXTS: len(getattr(call, "sequences", getattr(call, "texts", ()))),
        tracing.REQUEST_MODEL: model or "default",
        tracing.REQUEST_ID: getattr(call, "request_id", None) or "",
    }
    return tracing.entry(_method_of(call), "server", told, parent, received)


def _method_of(call: codec.Call) -> str:
    """The name of a call, one of a few."""
    if not isinstance(call, codec.Query):
        return type(call).__name__.lower()
    if call.what in codec.QUERIES:
        return call.what
    return protocol.DESCRIBE if protocol.offered(call.what) else "unknown"
