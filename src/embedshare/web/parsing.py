"""waitress's parser of requests, which reads a head that comes again on its connection once.

The requests of a client differ in what they carry and how long that is, their heads hardly ever. Reading one
takes as long as a fifth of all else that a worker does for a short text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from waitress.adjustments import Adjustments
from waitress.buffers import OverflowableBuffer
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.receiver import FixedStreamReceiver

#: Longer heads are read each time; a thousand connections keep one each.
_MOST_KEPT_BYTES = 4096
_LENGTH = re.compile(rb"(\r\nContent-Length: )([0-9]{1,18})(?=\r\n|\Z)", re.IGNORECASE)
#: What waitress reads of a head, beside its headers and its length.
_READ = (
    "first_line", "command", "version", "request_uri", "path", "query", "fragment",
    "proxy_scheme", "proxy_netloc", "url_scheme", "connection_close",
)  # fmt: skip


class _Head(NamedTuple):
    """A head, but for its Content-Length, and what it was read as."""

    around_length: list[bytes]
    attributes: dict[str, Any]
    headers: dict[str, str]


@dataclass
class LastHead:
    """What a connection's last head was, if it is worth keeping."""

    head: _Head | None = None


class Parser(HTTPRequestParser):
    """Reads one request of a connection."""

    def __init__(self, adj: Adjustments, last: LastHead) -> None:
        super().__init__(adj)
        self._last = last

    def received(self, data: bytes) -> int:
        """See HTTPRequestParser."""
        consumed = super().received(data)
        if self.error:
            self.expect_continue = False  # else waitress asks for the body that it refuses
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        """See HTTPRequestParser."""
        around = _LENGTH.split(header_plus)
        length = b""
        if len(around) == 4:  # it is said once, and so plainly that nobody reads another length there
            length = around.pop(2)
            if self._last.head is not None and self._last.head.around_length == around:
                self._read_as(self._last.head, length)
                return
        try:
            super().parse_header(header_plus)
        except ValueError:  # of int and urlsplit, which would close the connection without an answer
            raise ParsingError("the request's target or its Content-Length is invalid") from None
        simple = not self.chunked and not self.expect_continue and len(header_plus) <= _MOST_KEPT_BYTES
        if length and simple:
            attributes = {name: getattr(self, name) for name in _READ}
            self._last.head = _Head(around, attributes, dict(self.headers))

    def _read_as(self, head: _Head, length: bytes) -> None:
        vars(self).update(head.attributes)
        self.headers = {**head.headers, "CONTENT_LENGTH": length.decode()}
        self.content_length = int(length)
        if self.content_length:
            buffer = OverflowableBuffer(self.adj.inbuf_overflow)
            self.body_rcv = FixedStreamReceiver(self.content_length, buffer)
