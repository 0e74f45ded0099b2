"""waitress with the limits and the errors of this product."""

from __future__ import annotations

from typing import Any

from flask import Flask
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import BaseWSGIServer, MultiSocketServer, create_server
from waitress.task import ErrorTask
from waitress.utilities import RequestEntityTooLarge, RequestHeaderFieldsTooLarge

from embedshare.settings import Settings
from embedshare.web import errors, load


def listen(app: Flask, settings: Settings) -> BaseWSGIServer | MultiSocketServer:
    """A server that listens where the settings say; its `run` serves `app`.

    A body over the limit is refused by its Content-Length, or when as much has come of a chunked one.
    Raises OSError where the address cannot be listened at.
    """
    sockets: dict[int, Any] = {}
    server = create_server(
        app, sockets, host=settings.web_host, port=settings.web_port, threads=settings.web_threads,
        ident=None, max_request_body_size=settings.max_message_bytes + 1,  # the first size it refuses
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
            message, kind = refusal.message, type(refusal).__name__
        else:
            message, kind = error.body, error.reason
        # It has none where its head was not understood; of one that was too long waitress makes up "/".
        unknown = isinstance(error, RequestHeaderFieldsTooLarge)
        path = "" if unknown else getattr(self.request, "path", "")
        body = errors.body(path, message, kind, error.code)
        self.status = f"{error.code} {error.reason}"
        self.response_headers = [("Content-Type", errors.JSON), errors.NOSNIFF]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    parser_class = _Parser
    error_task_class = _ErrorTask
