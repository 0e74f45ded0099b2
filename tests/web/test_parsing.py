"""A head that comes again is read as it was read at first, and no other is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waitress.adjustments import Adjustments

from embedshare.web.parsing import LastHead, Parser

OPTIONS = Adjustments(max_request_body_size=100_000, max_request_header_size=16_384)
HEAD = (
    b"POST /v1/embeddings?a=1 HTTP/1.1\r\n"
    b"Host: 127.0.0.1:5000\r\n"
    b"Content-Length: %b\r\n"
    b"X-Forwarded-For: 10.0.0.1\r\n"
    b"x-forwarded-for: 10.0.0.2\r\n"
    b"Under_Score: no\r\n"
    b"Content-Type: application/json"
)
#: The head of a request with a body of this many bytes, and what comes of it.
SIMPLE = HEAD % b"7"
READ = (
    "first_line", "command", "version", "request_uri", "path", "query", "fragment", "proxy_scheme",
    "proxy_netloc", "url_scheme", "connection_close", "headers", "chunked", "content_length",
    "expect_continue", "completed", "empty",
)  # fmt: skip


def _read(last: LastHead, head: bytes, body: bytes = b"{seven}", piece: int = 10_000) -> Parser:
    """The parser, after a connection's next request has come in pieces of this many bytes."""
    parser = Parser(OPTIONS, last)
    sent = head + b"\r\n\r\n" + body
    while sent and not parser.completed:
        consumed = parser.received(sent[:piece])
        sent = sent[consumed:]
    return parser


def _told(parser: Parser) -> dict[str, Any]:
    """All that comes of a request."""
    told = {name: getattr(parser, name, None) for name in READ}
    error = parser.error and (type(parser.error), parser.error.body)
    return {**told, "error": error, "body": parser.get_body_stream().read()}


@pytest.mark.parametrize("piece", [1, 50, 10_000])
@pytest.mark.parametrize("body", [b"{seven}", b"", b"x", b"y" * 5000])
def test_the_same_head_again_with_another_length(body: bytes, piece: int) -> None:
    last = LastHead()
    _read(last, SIMPLE)
    kept = last.head
    assert kept is not None
    again = HEAD % str(len(body)).encode()
    assert _told(_read(last, again, body, piece)) == _told(_read(LastHead(), again, body))
    assert last.head is kept


def test_requests_have_headers_of_their_own() -> None:
    last = LastHead()
    for _ in range(3):
        parser = _read(last, SIMPLE)
        assert parser.headers["X_FORWARDED_FOR"] == "10.0.0.1, 10.0.0.2"
        assert isinstance(parser.headers, dict)
        parser.headers.clear()


@pytest.mark.parametrize("length", [b"99999", b"100000", b"100001", b"999999999999999999"])
def test_a_body_over_the_limit_is_refused_by_a_head_that_is_known(length: bytes) -> None:
    last = LastHead()
    _read(last, SIMPLE)
    known, new = _read(last, HEAD % length), _read(LastHead(), HEAD % length)
    assert _told(known) == _told(new)
    assert bool(known.error) is (int(length) > 99_999)


OTHERS = {
    "another path": SIMPLE.replace(b"embeddings", b"other"),
    "another header": SIMPLE.replace(b"10.0.0.1", b"10.0.0.9"),
    "one header more": SIMPLE + b"\r\nConnection: close",
    "one header less": SIMPLE.replace(b"Under_Score: no\r\n", b""),
    "a length twice": SIMPLE + b"\r\nContent-Length: 7",
    "a length twice, written otherwise": SIMPLE + b"\r\nContent-Length:7",
    "a length that goes on": SIMPLE.replace(b": 7", b": 7\r\n 1"),
    "a length that goes on, of a list": SIMPLE.replace(b": 7", b": 7, 7"),
    "no number": SIMPLE.replace(b": 7", b": seven"),
    "a sign": SIMPLE.replace(b": 7", b": +7"),
    "no length": SIMPLE.replace(b"Content-Length: 7\r\n", b""),
    "a length beyond numbers": SIMPLE.replace(b": 7", b": " + b"9" * 5000),
    "chunks": SIMPLE.replace(b"Content-Length: 7", b"Transfer-Encoding: chunked"),
    "chunks and a length": SIMPLE + b"\r\nTransfer-Encoding: chunked",
    "a question first": SIMPLE + b"\r\nExpect: 100-continue",
    "a bare line feed": SIMPLE.replace(b"7\r\n", b"7\n"),
    "no head": b"",
    "too long": SIMPLE + b"\r\nX-Long: " + b"x" * 20_000,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_any_other_head_is_read_as_if_it_were_the_first(other: bytes) -> None:
    last = LastHead()
    _read(last, SIMPLE)
    assert _told(_read(last, other)) == _told(_read(LastHead(), other))
    assert _told(_read(last, SIMPLE)) == _told(_read(LastHead(), SIMPLE))


@pytest.mark.parametrize("name", ["chunks", "chunks and a length", "a question first", "a length twice"])
def test_what_is_not_simple_is_not_kept(name: str) -> None:
    last = LastHead()
    _read(last, OTHERS[name])
    assert last.head is None
    long = LastHead()
    _read(long, SIMPLE + b"\r\nX-Long: " + b"x" * 5000)
    assert long.head is None


_PIECES = st.sampled_from([
    b"POST / HTTP/1.1", b"\r\n", b"\r\n", b"\r\n ", b"\n", b"\r", b"Content-Length: 7", b"content-length: 3",
    b"Content-Length:", b"7", b" ", b",", b"Transfer-Encoding: chunked",
    b"A: b", b"Content-Length: 7\r\nA: b",
])  # fmt: skip


@given(first=st.lists(_PIECES, max_size=6), then=st.lists(_PIECES, max_size=6))
@settings(max_examples=1500)
def test_no_head_changes_how_the_next_one_is_read(first: list[bytes], then: list[bytes]) -> None:
    last = LastHead()
    start = b"POST /x HTTP/1.1\r\nContent-Length: 7"
    one, other = start + b"".join(first), start + b"".join(then)
    for head in (one, other, one):
        assert _told(_read(last, head)) == _told(_read(LastHead(), head))
