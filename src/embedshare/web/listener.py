"""waitress with the limits and the errors of this product."""

from __future__ import annotations

import time
from typing import Any

from flask import Flask
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import BaseWSGIServer, MultiSocketServer, create_server
from waitress.task import ErrorTask
from waitress.utilities import RequestEntityTooLarge

from embedshare.settings import Settings
from embedshare.web import errors, headers, load

#: Bytes of a request's line and headers together; clients send a few hundred.
MOST_HEADER_BYTES = 32 * 1024
#: Connections that are open at once. Those that send slowly take one each, and none of the threads.
MOST_CONNECTIONS = 1000
#: A request has so many seconds to arrive, and one more for each of so many bytes. Who is slower is cut off:
#: connections that never finish would take all places in the end.
ARRIVAL_S, ARRIVAL_BYTES_A_S = 30.0, 1000


def listen(app: Flask, settings: Settings) -> BaseWSGIServer | MultiSocketServer:
    """A server that listens where the settings say; its `run` serves `app`.

    A body over the limit is refused by its Content-Length, or when as much has come of a chunked one.
    Raises OSError where the address cannot be listened at.
    """
    sockets: dict[int, Any] = {}
    server = create_server(
        app, sockets, host=settings.web_host, port=settings.web_port, threads=settings.web_threads,
        ident=None, max_request_body_size=settings.max_message_bytes + 1,  # the first size it refuses
        max_request_header_size=MOST_HEADER_BYTES,
        clear_untrusted_proxy_headers=False,  # the application decides whom it believes
        connection_limit=MOST_CONNECTIONS, asyncore_use_poll=True,  # select() ends at 1,024 files
    )  # fmt: skip
    for listener in sockets.values():
        if isinstance(listener, BaseWSGIServer):
            listener.channel_class = _Channel
    tasks = server.task_dispatcher
    app.extensions[load.IN_FLIGHT] = lambda: len(tasks.queue) + tasks.active_count
    return server


class _Parser(HTTPRequestParser):
    def received(self, data: bytes) -> int:
        consumed = super().received(data)
        if self.error:
            self.expect_continue = False  # else waitress asks for the body that it refuses
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:  # of int and urlsplit, which would close the connection without an answer
            raise ParsingError("the request's target or its Content-Length is invalid") from None


class _ErrorTask(ErrorTask):
    """The answer to a request that waitress refuses before the application sees it."""

    request: HTTPRequestParser  # type: ignore[assignment]  # the stub has it be the error

    def execute(self) -> None:
        error = self.request.error
        assert error is not None
        if isinstance(error, RequestEntityTooLarge):
            refusal = errors.body_too_large(self.channel.adj.max_request_body_size - 1)
            body = errors.body(refusal.message, type(refusal).__name__)
        else:
            body = errors.body(error.body, error.reason)
        self.status = f"{error.code} {error.reason}"
        self.response_headers = [("Content-Type", errors.JSON), ("Cache-Control", "no-store"), *headers.FIXED]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    parser_class = _Parser
    error_task_class = _ErrorTask
    _arriving: HTTPRequestParser | None = None
    _began = 0.0
    _came = 0

    def received(self, data: bytes) -> bool:
        received = bool(super().received(data))
        if self.request is not self._arriving:
            self._arriving, self._began, self._came = self.request, time.monotonic(), 0
        self._came += len(data)
        return received

    def readable(self) -> bool:
        """Asked in each turn of the listener's loop, at least once a second."""
        if self.request is not None:
            if self.requests:  # nothing is read while another request of this connection is answered
                self._began = time.monotonic()
            limit_s = ARRIVAL_S + self._came / ARRIVAL_BYTES_A_S
            self.will_close = self.will_close or time.monotonic() - self._began > limit_s
        return bool(super().readable())
