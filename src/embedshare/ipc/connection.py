"""The client's end: one connection for each thread of each process, opened at first use."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedshare import platforms
from embedshare.calls import OutputsResult, Prompted, prompt_of
from embedshare.errors import (
    DeadlineExceeded,
    EmbedshareError,
    InvalidInput,
    ModelSwapped,
    Overloaded,
    ProtocolError,
    ServerHung,
    ServerUnavailable,
    TooLarge,
    UnknownModel,
)
from embedshare.identity import ModelDescription, names_of
from embedshare.ipc import arrays, codec, protocol
from embedshare.ipc.hang_detector import HangDetector
from embedshare.ipc.transport import Client, Connection
from embedshare.settings import ServerSettings
from embedshare.telemetry import tracing

#: Idle seconds after which a connection is checked before use: a firewall or NAT may have dropped it
#: silently.
IDLE_S = 2.0
#: Seconds that the check waits for an answer before it opens a new connection.
PROOF_S = 2.0
#: The largest message from a server: its rows come separately, so answers are small.
MAX_ANSWER_BYTES = 64 << 20
#: What the bytes behind an answer hold: rows, the ids and scores of hits, or several outputs.
_Raw = np.ndarray | tuple[np.ndarray, np.ndarray] | OutputsResult | None


class MetModel:
    """One of a server's models as this process has met it; its threads share it.

    `name` is an id or an alias of the model, "" for the default one. `on_met` sees each description before it
    is used, and may refuse it by raising.
    """

    def __init__(self, name: str, on_met: Callable[[ModelDescription], object]) -> None:
        self.name = name
        self.description: ModelDescription | None = None
        """None: the next call asks for it."""
        self._on_met = on_met

    def meet(self, description: ModelDescription) -> None:
        """The server has described the model. Raises what `on_met` raises."""
        self.description = None
        self._on_met(description)
        self.description = description


class _Message(NamedTuple):
    """A call and everything that goes with it."""

    call: codec.Call
    model: MetModel | None = None
    request: Prompted | None = None
    raw: Sequence[memoryview] = ()
    is_check: bool = False
    needs_description: bool = False

    @property
    def may_be_traced(self) -> bool:
        """Whether it belongs in a trace; queries and health checks do not."""
        return not self.is_check and not isinstance(self.call, codec.Query)


class Connections:
    """This process's connections to one server, for all of its models.

    `key` is called for each new connection, so that a replaced key is found. `caller` describes this process
    to the server. `notice_hang`: a late call ends with ServerHung if a new connection gets no answer either.
    Without it each call waits until its deadline. `local`: the file that the server may listen on too.
    """

    def __init__(
        self,
        settings: ServerSettings,
        key: Callable[[], bytes],
        caller: Callable[[], codec.Caller],
        notice_hang: bool = False,
        local: Path | None = None,
    ) -> None:
        self._settings = settings
        self._local_socket = local
        self._key = key
        self._caller = caller
        self.reconnects = 0
        """Connections that took the place of one that had ended."""
        self._users = 1
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
        model: MetModel | None = None,
        request: Prompted | None = None,
        raw: Sequence[memoryview] = (),
        is_check: bool = False,
    ) -> Any:
        """Send `call` to `model`, with the raw bytes that it announces, and return its answer.

        It gets its id and the seconds left here, and the prompt of `request`. `is_check`: see codec.Routed.

        A call that Rows answer gives `(rows, answer, model)` with float32 rows of shape (n, dimension) and
        the description of the model that made them. A Search gives `((ids, scores), answer, model)`, an
        EncodeOutputs `(result, answer, model)` with an OutputsResult, any other call the reply's value.

        Raises the server's error, NotServed for a call that the server's version does not know,
        ServerUnavailable if the connection broke, and
        DeadlineExceeded. After either the call may be sent again: calls are idempotent.
        """
        return self._answer(_Message(call, model, request, raw, is_check, call.needs_description), deadline)

    def describe(self, model: MetModel, deadline: float) -> ModelDescription:
        """Have the server describe `model`, which meets the description. Raises what `call` raises."""
        met = MetModel(model.name, model.meet)
        query = codec.Query(*codec.UNSENT, "active_operations")
        self._answer(_Message(query, met, needs_description=True), deadline)
        assert met.description is not None  # the message needed it
        return met.description

    def _answer(self, message: _Message, deadline: float) -> Any:
        while True:
            try:
                return self._tried(message, deadline)
            except ModelSwapped:  # the call was not executed
                if message.model is not None:
                    message.model.description = None

    def _tried(self, message: _Message, deadline: float) -> Any:
        reused = getattr(self._local, "connection", None) is not None
        try:
            sent = self._sent(message, deadline)
        except ServerHung:
            raise
        except ServerUnavailable:
            if not reused:
                raise
            # The server was restarted since the last call: that costs a connection, not a failed try.
            sent = self._sent(message, deadline)
        connection, described, answer, rows = sent
        if isinstance(answer, codec.Reply):
            return answer.value
        if isinstance(answer, codec.Failure):
            if answer.id != message.call.id:  # about the connection, which the server closes
                self._drop(connection)
            raise codec.error_in(answer)
        return rows, answer, described

    def _sent(
        self, message: _Message, deadline: float
    ) -> tuple[Connection, ModelDescription | None, codec.Answer, _Raw]:
        connection = self._connection(deadline)
        described = self._description(connection, message, deadline)
        call, request = message.call, message.request
        call.id, call.time_left_s = next(self._ids), max(0.0, deadline - time.monotonic())
        if request is not None and described is not None and isinstance(call, codec.Prompted):
            call.prompt = _prompt(call, request, described)
        if tracing.enabled and message.may_be_traced:
            answer, rows = self._traced(connection, message, described, deadline)
        else:
            answer, rows = self._exchanged(connection, message, described, deadline)
        return connection, described, answer, rows

    def _description(
        self, connection: Connection, message: _Message, deadline: float
    ) -> ModelDescription | None:
        """The description of the message's model; the server is asked if it is needed and not known."""
        model, only = message.model, connection.model
        if model is None:
            return only
        if only is not None:
            if model not in connection.met:
                _check_name(model.name, only)
                model.meet(only)
                connection.met.add(model)
            return only
        if model.description is None and (message.needs_description or message.is_check):
            query = codec.Query(next(self._ids), max(0.0, deadline - time.monotonic()), "describe")
            asked = message._replace(call=query, raw=())
            answer, _ = self._exchanged(connection, asked, None, deadline)
            if isinstance(answer, codec.Failure):
                error = codec.error_in(answer)
                if not message.needs_description and isinstance(error, Overloaded):
                    return None  # it was never loaded, which a health check does not change
                raise error
            model.meet(codec.description_in(answer))
        return model.description

    def _traced(
        self, connection: Connection, message: _Message, described: ModelDescription | None, deadline: float
    ) -> tuple[codec.Answer, _Raw]:
        """`_exchanged` with a span."""
        host, port = self._settings.address
        with tracing.wire({"server.address": host, "server.port": port}):
            return self._exchanged(connection, message, described, deadline)

    def _exchanged(
        self, connection: Connection, message: _Message, described: ModelDescription | None, deadline: float
    ) -> tuple[codec.Answer, _Raw]:
        data = self._encoded(message, described, connection.protocol)
        # Until its answer is read the connection is hidden: from the next call, wherever an interrupt ends
        # this one, and from a signal handler that calls meanwhile.
        self._local.connection = None
        try:
            connection.set_deadline(deadline, self._hang_detector.check if self._notice_hang else None)
            answer, rows = _exchange(connection, message.call, data, message.raw, described)
            self._hang_detector.answered(connection.last_answer)
        except BaseException as error:
            connection.close()
            if isinstance(error, EmbedshareError) or not isinstance(error, EOFError | OSError):
                raise
            raise ServerUnavailable(
                f"the model server closed the connection during a call ({error})"
            ) from None
        self._local.connection = connection
        return answer, rows

    def _encoded(self, message: _Message, described: ModelDescription | None, version: int) -> bytes:
        """The bytes of a call. Raises TooLarge, InvalidInput, NotServed for a server before its version."""
        call, model = message.call, message.model
        if call.since > version:
            protocol.check_outputs(version)
        if version == 1:
            data = codec.encode(codec.for_version_1(call))
        elif version < protocol.ROUTED or model is None:
            data = codec.encode(call)
        else:
            identity = None if described is None else described.identity
            routed = codec.Routed(model.name, identity, message.is_check, call)
            is_traced = tracing.enabled and version >= protocol.TRACED and message.may_be_traced
            parent = tracing.parent() if is_traced else None
            data = codec.encode(routed if parent is None else codec.Traced(*parent, routed))
        allowed = self._settings.max_message_bytes
        if len(data) > allowed:
            raise TooLarge(
                f"the call takes {len(data):,} bytes, its prompt included; "
                f"EMBEDDING_MAX_MESSAGE_BYTES allows {allowed:,}"
            )
        return data

    def share(self) -> Connections:
        """The same connections, for one more client; `close` is then called once more."""
        with self._open_lock:
            self._users += 1
        return self

    def close(self) -> None:
        """Close every thread's connection, if no other client shares them."""
        with self._open_lock:
            self._users -= 1
            if self._users > 0:
                return
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

    def _agree(self, connection: Connection, deadline: float) -> None:
        """Agree with the server on a protocol version; one before version 3 describes its only model."""
        caller = self._caller()
        try:
            reply = self._ask(connection, protocol.question(protocol.VERSION), deadline, caller)
        except InvalidInput:  # a server of version 1 does not know the query
            connection.protocol = protocol.agreed(1)
            reply = self._ask(connection, protocol.question(1), deadline, caller)
            connection.model = codec.description_in(reply)
        else:
            welcome = protocol.welcome_in(reply.value)
            connection.protocol = protocol.agreed(welcome.protocol)
            connection.model = welcome.model

    def _connect(self, deadline: float) -> Connection:
        connection = Client(self._settings.address, self._key(), deadline, self._local_socket)
        try:
            self._agree(connection, deadline)
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


def _prompt(call: codec.Prompted, request: Prompted, model: ModelDescription) -> Any:
    """The prompt of a call; None if `model` is to take its own of queries and of documents."""
    by_task = isinstance(call, codec.Score) and "scores" not in model.outputs
    if by_task and request.prompt is None and request.prompt_name is None:
        return None
    return prompt_of(request, model)


def _check_name(name: str, only: ModelDescription) -> None:
    """Raise UnknownModel if a server of one model does not serve this name."""
    if name and name not in names_of(only.model_name):
        raise UnknownModel(
            f"the model {name[:100]!r} is not served: the model server is of an earlier release, and serves "
            f"{only.model_name} alone"
        )


def _exchange(
    connection: Connection,
    call: codec.Call,
    message: bytes,
    raw: Sequence[memoryview] = (),
    described: ModelDescription | None = None,
) -> tuple[codec.Answer, _Raw]:
    connection.send_bytes(message, *raw)
    answer = codec.decode_answer(connection.recv_bytes(MAX_ANSWER_BYTES))
    connection.last_answer = time.monotonic()
    if answer.id != call.id and not (isinstance(answer, codec.Failure) and answer.id == 0):
        raise ProtocolError(f"the answer to call {answer.id} came for call {call.id}")
    if isinstance(answer, codec.Rows):
        return answer, _rows(connection, call, answer)
    if isinstance(answer, codec.Reply):
        return answer, None
    if isinstance(answer, codec.Hits):
        return answer, _hits(connection, call, answer.count)
    if isinstance(answer, codec.Arrays):
        return answer, _outputs(connection, call, answer, described)
    return answer, None


def _rows(connection: Connection, call: codec.Call, answer: codec.Rows) -> np.ndarray:
    if answer.count != call.rows or not 0 <= answer.dimension <= 1 << 20:
        raise ProtocolError(f"{answer.count} rows of {answer.dimension} came for {call.rows} texts")
    rows = np.empty((answer.count, answer.dimension), np.float32)
    if rows.nbytes:
        connection.recv_into(rows.data.cast("B"))
    return rows


def _outputs(
    connection: Connection, call: codec.Call, answer: codec.Arrays, described: ModelDescription | None
) -> OutputsResult:
    if not isinstance(call, codec.EncodeOutputs) or described is None:
        raise ProtocolError("arrays came for a call that has none")
    return arrays.read(answer, call.outputs, len(call.texts), described, connection.recv_into)


def _hits(connection: Connection, call: codec.Call, count: int) -> tuple[np.ndarray, np.ndarray]:
    asked = call.k if isinstance(call, codec.Search) else 0
    if not 0 <= count <= asked:
        raise ProtocolError(f"{count} hits came; {asked} were requested")
    ids, scores = np.empty(count, np.int64), np.empty(count, np.float32)
    if count:
        connection.recv_into(ids.data.cast("B"))
        connection.recv_into(scores.data.cast("B"))
    return ids, scores
