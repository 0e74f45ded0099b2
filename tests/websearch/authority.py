"""Certificates for invented names, and an HTTPS proxy that answers in place of other hosts."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import trustme

from tests.websearch.site import Quiet, serving


def context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """Return a server's context, with a certificate for `names`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    authority.issue_cert(*names).configure_cert(context)
    return context


@contextmanager
def serving_tls(handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext) -> Iterator[int]:
    """Run an HTTPS server on 127.0.0.1; yield its port."""

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            try:
                with context.wrap_socket(request, server_side=True) as wrapped:
                    super().finish_request(wrapped, client_address)
            except OSError:  # a client that does not trust the certificate closes the connection
                pass

    with serving(handler, Server) as port:
        yield port


class Intercepting(Quiet):
    """A proxy that answers a CONNECT as the requested host, whose name is `host`."""

    protocol_version = "HTTP/1.1"
    context: ssl.SSLContext
    host = ""

    def do_CONNECT(self) -> None:
        self.host = self.path.partition(":")[0]
        self.send_response_only(200)
        self.end_headers()
        self.connection = self.context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)  # type: ignore[assignment]
        self.close_connection = False
