"""waitress with this product's limits and errors."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from copy import copy
from typing import Any

from flask import Flask
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import RequestEntityTooLarge, RequestHeaderFieldsTooLarge

from embedshare.errors import PortUnavailable
from embedshare.settings import Settings
from embedshare.web import errors, large_bodies
from embedshare.web.apis import load
from embedshare.web.guards import headers, paths
from embedshare.web.large_bodies import LargeBodies
from embedshare.web.server.loop import Loop, Sockets, StockLoop

#: The most bytes of a request's line and headers; clients send a few hundred.
MOST_HEADER_BYTES = 32 * 1024
#: The most open connections. Slow senders take one each, but no thread.
MOST_CONNECTIONS = 1000
#: Seconds for a request to arrive, plus one for each of these bytes. Slower ones are closed: connections that
#: never finish would fill all places.
ARRIVAL_S, ARRIVAL_BYTES_A_S = 30.0, 1000
#: Seconds for which an ending worker answers its connections: a request may be on its way.
LEAVING_S = 1.0
#: Seconds between an ending worker's checks of its last requests.
LOOK_EVERY_S = 0.02
#: Extra seconds for threads that still answer after EMBEDDING_DRAIN_S.
LAST_S = 1
#: The attribute of waitress's adjustments that holds the application's LargeBodies.
_LARGE = "large_bodies"
#: That of a request's own adjustments, which says by which setting its body is limited.
_LIMITED_BY = "limited_by"
#: The answer to a ping, OPTIONS *, see operate/probes.py.
_PONG = b"HTTP/1.1 204 No Content\r\n\r\n"


class Listening:
    """Serves an application at the settings' address."""

    def __init__(self, app: Flask, settings: Settings, inherited: socket.socket | None = None) -> None:
        """Raises PortUnavailable.

        `inherited` listens at the settings' address already, and another process keeps it open. A body over
        the limit is refused by its Content-Length, or after that many bytes of a chunked one. Routes that
        take large bodies have a limit of their own.
        """
        self._drain_s = settings.server.drain_s
        options: dict[str, Any] = {
            "threads": settings.web.threads, "ident": None,
            "max_request_body_size": settings.server.max_message_bytes + 1,  # the first size it refuses
            "max_request_header_size": MOST_HEADER_BYTES,
            "clear_untrusted_proxy_headers": False,  # the application decides which proxies to trust
            "connection_limit": MOST_CONNECTIONS,
        }  # fmt: skip
        self._sockets = Sockets()
        self._runs = self._leaves = False
        host, port = settings.web.host, settings.web.port
        where = {"host": host, "port": port} if inherited is None else {"sockets": [inherited]}
        try:
            self._server = create_server(app, self._sockets, **where, **options)
        except OSError as error:
            raise _unavailable(host, port, error) from None
        self._loop = (Loop if settings.web.loop == "own" else StockLoop)(self._sockets)
        self._server.asyncore = self._loop  # type: ignore[assignment]
        self.address = host, port
        """Where it listens, or is about to."""
        self._listeners = [each for each in self._sockets.values() if isinstance(each, BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = _Channel
            setattr(listener.adj, _LARGE, app.extensions.get(large_bodies.EXTENSION))
        tasks = self._server.task_dispatcher
        app.extensions[load.IN_FLIGHT] = lambda: len(tasks.queue) + tasks.active_count

    def run(self) -> None:
        """Serve until `leave` has answered the requests, or until SystemExit or KeyboardInterrupt."""
        self._runs = True
        self._server.run()
        self._server.task_dispatcher.shutdown(timeout=LAST_S)

    def leave(self) -> None:
        """Have `run` return when the accepted requests are answered, after at most EMBEDDING_DRAIN_S.

        For a second every answer asks its client to reconnect, so that a proxy keeps no connection whose next
        request would fail. May be called from a signal handler; raises SystemExit if nothing is served yet,
        and the second time.
        """
        if self._leaves or not self._runs:
            raise SystemExit(0)
        self._leaves = True
        threading.Thread(target=self._leave, name="leaving", daemon=True).start()

    def _leave(self) -> None:
        began, drain_s = time.monotonic(), self._drain_s
        self._in_loop(self._say_goodbye)
        while self._channels() and time.monotonic() < began + min(LEAVING_S, drain_s):
            time.sleep(LOOK_EVERY_S)
        self._in_loop(lambda: _close(self._listeners))
        while self._channels() and time.monotonic() < began + drain_s:
            self._in_loop(self._close_idle)
            time.sleep(LOOK_EVERY_S)
        self._wake(self._loop.end)

    def _say_goodbye(self) -> None:
        for listener in self._listeners:
            listener.channel_class = _LeavingChannel
        for channel in self._channels():
            channel.ends = time.monotonic() + (0.0 if channel.pinged else LEAVING_S)
        self._close_idle()

    def _close_idle(self) -> None:
        """Have the loop check every connection now."""
        self._sockets.changed.extend(list(self._sockets))

    def _channels(self) -> list[_Channel]:
        return [each for each in list(self._sockets.values()) if isinstance(each, _Channel)]

    def _in_loop(self, do: Callable[[], None]) -> None:
        """Have the loop do this, and wait for it: a socket that it waits on would stay open."""
        done = threading.Event()

        def report() -> None:
            try:
                do()
            finally:
                done.set()

        self._wake(report)
        done.wait()

    def _wake(self, then: Callable[[], None] | None = None) -> None:
        """Have the loop read its sockets again, and do this."""
        trigger: Any = self._listeners[0].trigger
        trigger.pull_trigger(then)


def _close(listeners: list[BaseWSGIServer]) -> None:
    """Accept no more connections; the open ones end when idle, and use the trigger until then.

    Called by the loop.
    """
    ends = time.monotonic() + LEAVING_S
    for listener in listeners:
        listener.channel_class = _LeavingChannel
        channels: dict[int, _Channel] = vars(listener)["active_channels"]
        known = -1
        while known < len(channels):
            known = len(channels)
            listener.handle_accept()
        for channel in channels.values():
            channel.ends = min(channel.ends, ends)
        listener.accepting = False
        listener.del_channel()
        vars(listener)["socket"].close()


def _unavailable(host: str, port: int, error: OSError) -> PortUnavailable:
    message = f"the worker cannot listen at {host}:{port}: {error.strerror or error}"
    return PortUnavailable(message, host=host, port=port)


class _Parser(HTTPRequestParser):
    path: str  # set by parse_header

    def received(self, data: bytes) -> int:
        """See HTTPRequestParser."""
        consumed = super().received(data)
        if self.error:
            self.expect_continue = False  # else waitress requests the body that it refuses
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        """See HTTPRequestParser."""
        try:
            super().parse_header(header_plus)
        except ValueError:  # of int and urlsplit, which would close the connection without an answer
            raise ParsingError("the request's target or its Content-Length is invalid") from None
        if self.chunked or self.content_length >= self.adj.max_request_body_size:
            self._raise_limit()

    def _raise_limit(self) -> None:
        large: LargeBodies | None = getattr(self.adj, _LARGE, None)
        limit = None if large is None else large.limit(str(self.command), self.path, self.headers)
        if limit is not None and limit.bytes >= self.adj.max_request_body_size:
            self.adj = copy(self.adj)
            self.adj.max_request_body_size = limit.bytes + 1
            setattr(self.adj, _LIMITED_BY, limit.setting)


class _ErrorTask(ErrorTask):
    """The answer to a request that waitress refuses before the application."""

    request: HTTPRequestParser  # type: ignore[assignment]  # the stub has it be the error

    def execute(self) -> None:
        error = self.request.error
        assert error is not None
        if isinstance(error, RequestEntityTooLarge):
            setting = getattr(self.request.adj, _LIMITED_BY, errors.LIMIT)
            refusal = errors.body_too_large(self.request.adj.max_request_body_size - 1, setting)
            message, kind = refusal.message, type(refusal).__name__
        else:
            message, kind = error.body, error.reason
        # It has none if its head was not understood; waitress invents "/" for one that was too long.
        unknown = isinstance(error, RequestHeaderFieldsTooLarge)
        path = "" if unknown else getattr(self.request, "path", "")
        app: Any = self.channel.server.application
        body = errors.body(errors.form_at(app, paths.normalized(path)), message, kind, error.code)
        self.status = f"{error.code} {error.reason}"
        self.response_headers = [("Content-Type", errors.JSON), ("Cache-Control", "no-store"), *headers.FIXED]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Task(WSGITask):
    """Sends an answer in one piece: a proxy that has only the head of a killed worker's answer cannot retry
    another one."""

    channel: _Channel
    request: HTTPRequestParser  # type: ignore[assignment]  # as above

    def build_response_header(self) -> bytes:
        """See Task."""
        if self.channel.ends < float("inf"):  # ask the client to reconnect
            self.request.headers = {**self.request.headers, "CONNECTION": "close"}
        return bytes(super().build_response_header())

    def write(self, data: bytes) -> None:
        if data and self.complete and not self.wrote_header:
            self.channel.head = self.build_response_header()
            self.wrote_header = True
        super().write(data)
        self.channel.write_soon(b"")  # the head of an answer without a body


class _Waking:
    """A connection's view of its listener: it wakes the loop only for remaining work, which most answers
    lack."""

    def __init__(self, listener: BaseWSGIServer, channel: _Channel) -> None:
        self._listener: Any = listener
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def add_task(self, channel: _Channel) -> None:
        """See BaseWSGIServer.

        The loop answers a ping by itself, so a worker whose threads are all busy does not look hung.
        """
        request: Any = channel.requests[0]
        if not request.error and (request.command, request.path) == ("OPTIONS", "*"):
            channel.requests = []
            request.close()
            channel.pinged = True
            channel.write_soon(_PONG)
        else:
            self._listener.add_task(channel)

    def pull_trigger(self) -> None:
        """See BaseWSGIServer."""
        channel = self._channel
        number: int | None = vars(channel)["_fileno"]
        if number is not None and (channel.rests or channel.writable()):
            self._listener._map.changed.append(number)
            self._listener.pull_trigger()


class _Channel(HTTPChannel):
    task_class = _Task
    error_task_class = _ErrorTask
    parser_class = _Parser
    head = b""
    """Bytes to send before the next ones."""

    ends = float("inf")
    """The time at which it is closed if it is idle."""

    pinged = False
    """Whether the supervisor's liveness checks use it."""

    rests = True
    """Whether the loop may miss its output and has to be woken. Loop updates this, StockLoop does not."""

    _arriving: HTTPRequestParser | None = None
    _began = 0.0
    _came = 0

    def __init__(self, server: BaseWSGIServer, *arguments: Any, **options: Any) -> None:
        super().__init__(server, *arguments, **options)
        self.server: Any = _Waking(server, self)

    def received(self, data: bytes) -> bool:
        received = bool(super().received(data))
        if self.request is not self._arriving:
            self._arriving, self._began, self._came = self.request, time.monotonic(), 0
        self._came += len(data)
        return received

    def readable(self) -> bool:
        """Called by the loop after input, and once a second."""
        if self.request is not None:
            if self.requests:  # read nothing while a request of this connection is answered
                self._began = time.monotonic()
            limit_s = ARRIVAL_S + self._came / ARRIVAL_BYTES_A_S
            self.will_close = self.will_close or time.monotonic() - self._began > limit_s
        elif not self.requests and not self.total_outbufs_len and time.monotonic() >= self.ends:
            self.will_close = True
        return bool(super().readable())

    def write_soon(self, data: Any) -> int:
        """Send a piece of an answer, or of a file."""
        if self.head:
            data, self.head = self.head + data, b""
        return int(super().write_soon(data))


class _LeavingChannel(_Channel):
    """A connection to an ending worker."""

    def __init__(self, server: BaseWSGIServer, *arguments: Any, **options: Any) -> None:
        super().__init__(server, *arguments, **options)
        self.ends = time.monotonic() + LEAVING_S
