"""The client's end: one connection for each thread of each process, opened at first use."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from embedshare import platforms
from embedshare.calls import EmbedRequest, prompt_of
from embedshare.errors import (
    DeadlineExceeded,
    EmbedshareError,
    InvalidInput,
    ModelSwapped,
    ProtocolError,
    ServerHung,
    ServerUnavailable,
    TooLarge,
)
from embedshare.identity import ModelDescription
from embedshare.ipc import codec, protocol
from embedshare.ipc.hang_detector import HangDetector
from embedshare.ipc.transport import Client, Connection
from embedshare.settings import ServerSettings

#: Idle seconds after which a connection is checked before use: a firewall or NAT may have dropped it
#: silently.
IDLE_S = 2.0
#: Seconds that the check waits for an answer before it opens a new connection.
PROOF_S = 2.0
#: The largest message from a server: its rows come separately, so answers are small.
MAX_ANSWER_BYTES = 64 << 20
#: The bytes behind an answer: rows, or the ids and scores of hits.
_Raw = np.ndarray | tuple[np.ndarray, np.ndarray] | None


class Connections:
    """This process's connections to one server.

    `key` is called for each new connection, so that a replaced key is found. `on_connect` sees the server's
    description before the connection is used and may refuse it by raising. `caller` describes this process to
    the server. `notice_hang`: a late call ends with ServerHung if a new connection gets no answer either.
    Without it each call waits until its deadline.
    """

    def __init__(
        self,
        settings: ServerSettings,
        key: Callable[[], bytes],
        on_connect: Callable[[ModelDescription], object],
        caller: Callable[[], codec.Caller],
        notice_hang: bool = False,
    ) -> None:
        self._settings = settings
        self._key = key
        self._on_connect = on_connect
        self._caller = caller
        self.reconnects = 0
        """Connections that took the place of one that had ended."""
        self._ids = itertools.count(1)
        self._notice_hang = notice_hang
        self._hang_detector = HangDetector(self._probe_server)
        self._local = threading.local()
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._open_lock = threading.Lock()

    def call(
        self,
        call: codec.Call,
        deadline: float,
        request: EmbedRequest | None = None,
        raw: memoryview | None = None,
    ) -> Any:
        """Send `call`, and the raw bytes that it announces, and return its answer.

        It gets its id and the seconds left here, and the prompt of `request` for the connection's model.

        An Encode gives `(rows, answer, model)` with float32 rows of shape (n, dimension) and the model that
        made them. A Search gives `((ids, scores), answer, model)`, any other call the reply's value. Raises
        the server's error, ServerUnavailable if the connection broke, and DeadlineExceeded. After either the
        call may be sent again: calls are idempotent.
        """
        while True:
            try:
                return self._call(call, deadline, request, raw)
            except ModelSwapped:
                continue  # the call was not executed; a new connection has the current model

    def _call(
        self, call: codec.Call, deadline: float, request: EmbedRequest | None, raw: memoryview | None
    ) -> Any:
        reused = getattr(self._local, "connection", None) is not None
        try:
            connection, answer, rows = self._send(call, deadline, request, raw)
        except ServerHung:
            raise
        except ServerUnavailable:
            if not reused:
                raise
            # The server was restarted since the last call: that costs a connection, not a failed try.
            connection, answer, rows = self._send(call, deadline, request, raw)
        if isinstance(answer, codec.Failure):
            if answer.id != call.id:  # about the connection, which the server closes
                self._drop(connection)
            raise codec.error_in(answer)
        if isinstance(answer, codec.Reply):
            return answer.value
        return rows, answer, connection.model

    def _send(
        self, call: codec.Call, deadline: float, request: EmbedRequest | None, raw: memoryview | None
    ) -> tuple[Connection, codec.Answer, _Raw]:
        connection = self._connection(deadline)
        assert connection.model is not None  # set when it was opened
        call.id, call.time_left_s = next(self._ids), max(0.0, deadline - time.monotonic())
        if request is not None and isinstance(call, codec.Prompted):
            call.prompt = prompt_of(request, connection.model)
        message = self._encoded(call, connection.protocol)
        # Until its answer is read the connection is hidden: from the next call, wherever an interrupt ends
        # this one, and from a signal handler that calls meanwhile.
        self._local.connection = None
        try:
            connection.set_deadline(deadline, self._hang_detector.check if self._notice_hang else None)
            answer, rows = _exchange(connection, call, message, raw)
            self._hang_detector.answered(connection.last_answer)
        except BaseException as error:
            connection.close()
            if isinstance(error, EmbedshareError) or not isinstance(error, EOFError | OSError):
                raise
            raise ServerUnavailable(
                f"the model server closed the connection during a call ({error})"
            ) from None
        self._local.connection = connection
        return connection, answer, rows

    def _encoded(self, call: codec.Call, version: int) -> bytes:
        """The bytes of a call. Raises TooLarge, InvalidInput."""
        message = codec.encode(codec.for_version_1(call) if version == 1 else call)
        allowed = self._settings.max_message_bytes
        if len(message) > allowed:
            raise TooLarge(
                f"the call takes {len(message):,} bytes, its prompt included; "
                f"EMBEDDING_MAX_MESSAGE_BYTES allows {allowed:,}"
            )
        return message

    def probe(self, deadline: float) -> None:
        """Connect, or use an open connection, and check that the server answers."""
        self.call(codec.Query(*codec.UNSENT, "active_operations"), deadline)

    def close(self) -> None:
        """Close every thread's connection."""
        with self._open_lock:
            connections = list(self._open)
        for connection in connections:
            connection.close()
        self._local = threading.local()

    def abandon(self) -> None:
        """In a forked child: drop the inherited connections without ending the parent's."""
        for connection in list(self._open):
            connection.abandon()
        self._open = weakref.WeakSet()
        self._open_lock = threading.Lock()
        self._local = threading.local()
        self._hang_detector = HangDetector(self._probe_server)

    def _connection(self, deadline: float) -> Connection:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is not None and time.monotonic() - connection.last_answer > IDLE_S:
            self._local.connection = None
            connection = self._proved(connection, deadline)
            self._local.connection = connection
        if connection is None:
            connection = self._connect(deadline)
            self._local.connection = connection
            with self._open_lock:
                self.reconnects += getattr(self._local, "had_one", False)
                self._open.add(connection)
            self._local.had_one = True
        return connection

    def _proved(self, connection: Connection, deadline: float) -> Connection | None:
        """An idle connection if it still leads to the server; else it is closed."""
        limit = min(deadline, time.monotonic() + PROOF_S)
        try:
            connection.set_deadline(limit)
            self._ask(connection, "active_operations", limit)
        except BaseException as error:
            connection.close()
            if not isinstance(error, EmbedshareError | EOFError | OSError):
                raise
            if time.monotonic() >= deadline:
                raise DeadlineExceeded("no answer in time") from None
            return None
        return connection

    def _probe_server(self, deadline: float) -> None:
        """Query the server on a connection of its own; see HangDetector."""
        try:
            self._connect(deadline).close()
        except (ServerUnavailable, DeadlineExceeded) as error:
            if not platforms.is_own_shortage(error):
                raise
        except EmbedshareError:
            pass  # it is alive; the next call raises this error

    def _ask(
        self, connection: Connection, what: str, deadline: float, caller: codec.Caller | None = None
    ) -> codec.Reply:
        """The server's reply to a query. Raises the error that it answers."""
        query = codec.Query(next(self._ids), max(0.0, deadline - time.monotonic()), what, caller)
        answer, _ = _exchange(connection, query, codec.encode(query))
        if isinstance(answer, codec.Failure):
            raise codec.error_in(answer)
        if not isinstance(answer, codec.Reply):
            raise ProtocolError("the server answered a query with vectors")
        return answer

    def _agree(self, connection: Connection, deadline: float) -> ModelDescription:
        """Agree with the server on a protocol version; returns its model."""
        caller = self._caller()
        try:
            reply = self._ask(connection, protocol.question(protocol.VERSION), deadline, caller)
        except InvalidInput:  # a server of version 1 does not know the query
            connection.protocol = protocol.agreed(1)
            return codec.description_in(self._ask(connection, protocol.question(1), deadline, caller))
        welcome = protocol.welcome_in(reply.value)
        connection.protocol = protocol.agreed(welcome.protocol)
        return welcome.model

    def _connect(self, deadline: float) -> Connection:
        connection = Client(self._settings.address, self._key(), deadline)
        try:
            description = self._agree(connection, deadline)
            connection.model = description
            self._on_connect(description)
        except BaseException as error:
            connection.close()
            if isinstance(error, DeadlineExceeded) and time.monotonic() < deadline:
                message = "the model server accepts connections but does not answer on them"
                raise ServerHung(message) from None
            if isinstance(error, EmbedshareError) or not isinstance(error, EOFError | OSError):
                raise
            raise ServerUnavailable(
                f"the model server closed the connection while it was opened ({error})"
            ) from None
        return connection

    def _drop(self, connection: Connection) -> None:
        connection.close()
        self._local.connection = None


def _exchange(
    connection: Connection, call: codec.Call, message: bytes, raw: memoryview | None = None
) -> tuple[codec.Answer, _Raw]:
    connection.send_bytes(message, raw)
    answer = codec.decode_answer(connection.recv_bytes(MAX_ANSWER_BYTES))
    connection.last_answer = time.monotonic()
    if answer.id != call.id and not (isinstance(answer, codec.Failure) and answer.id == 0):
        raise ProtocolError(f"the answer to call {answer.id} came for call {call.id}")
    if isinstance(answer, codec.Hits):
        return answer, _hits(connection, call, answer.count)
    if not isinstance(answer, codec.Rows):
        return answer, None
    expected = _rows_of(call)
    if answer.count != expected or not 0 <= answer.dimension <= 1 << 20:
        raise ProtocolError(f"{answer.count} rows of {answer.dimension} came for {expected} texts")
    rows = np.empty((answer.count, answer.dimension), np.float32)
    if rows.nbytes:
        connection.recv_into(rows.data.cast("B"))
    return answer, rows


def _rows_of(call: codec.Call) -> int:
    """The number of rows in a call's answer."""
    if isinstance(call, codec.Encode):
        return len(call.texts)
    return len(call.sequences) if isinstance(call, codec.EncodeTokens) else 0


def _hits(connection: Connection, call: codec.Call, count: int) -> tuple[np.ndarray, np.ndarray]:
    asked = call.k if isinstance(call, codec.Search) else 0
    if not 0 <= count <= asked:
        raise ProtocolError(f"{count} hits came; {asked} were requested")
    ids, scores = np.empty(count, np.int64), np.empty(count, np.float32)
    if count:
        connection.recv_into(ids.data.cast("B"))
        connection.recv_into(scores.data.cast("B"))
    return ids, scores
