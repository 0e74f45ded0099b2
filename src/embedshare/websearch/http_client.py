"""One GET to the checked addresses, which ends by its deadline however slowly the site sends.

It uses nothing of the environment but REQUESTS_CA_BUNDLE (no proxy, no .netrc) and keeps nothing (no
cookies): a proxy would resolve the name again, past the check.
"""

from __future__ import annotations

import functools
import io
import os
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from embedshare.errors import FetchFailed
from embedshare.websearch.address_policy import Target

#: The project's name in sites' robots.txt and logs.
AGENT = "embedshare"
#: Seconds to connect to one address, so that a second one has its turn.
CONNECT_S = 4.0
#: The most addresses of one host that are tried.
MAX_ADDRESSES = 3
_CHUNK = 1 << 14
_HEADERS = {
    "User-Agent": f"Mozilla/5.0 (compatible; {AGENT})",
    "Accept": "text/html,application/xhtml+xml,text/plain;q=0.8",
    "Accept-Encoding": "gzip, deflate",
    "Connection": "close",
}


@contextmanager
def answer(target: Target, deadline: float) -> Iterator[requests.Response]:
    """The head of the site's answer; `body` reads the rest.

    Redirects are not followed. Raises FetchFailed.
    """
    request = _prepared(target)
    reason = "no time is left"
    for address in target.addresses[:MAX_ADDRESSES]:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        with _Pinned(target, address, deadline) as adapter:
            try:
                response = adapter.send(
                    request,
                    stream=True,
                    timeout=(min(CONNECT_S, left), left),
                    verify=os.environ.get("REQUESTS_CA_BUNDLE") or True,
                )
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                reason = reason_of(error)
                continue
            with response:
                yield response
            return
    raise FetchFailed(f"{target.host} did not answer: {reason}")


def body(response: requests.Response, deadline: float, max_bytes: int) -> bytes:
    """At most `max_bytes` of the body, decompressed; no more of a longer one is read or held."""
    inflate = _Inflate(response.headers.get("Content-Encoding", ""))
    content, read = bytearray(), 0
    try:
        while len(content) < max_bytes and read < max_bytes:
            if time.monotonic() > deadline:
                raise FetchFailed("the page did not come in time")
            chunk = response.raw.read(min(_CHUNK, max_bytes - read), decode_content=False)
            if not chunk:
                break
            read += len(chunk)
            content += inflate(chunk, max_bytes - len(content))
    except (urllib3.exceptions.HTTPError, OSError, zlib.error) as error:
        raise FetchFailed(f"the page broke off: {reason_of(error)}") from None
    return bytes(content)


def reason_of(error: BaseException) -> str:
    """The reason why a site could not be reached or read, in a few words.

    Libraries quote the whole address, which may hold the query of a search.
    """
    kinds = [type(one) for one in _causes(error)]
    for said, of in _REASONS:
        if any(issubclass(kind, of) for kind in kinds):
            return said
    return type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and the errors that its libraries have wrapped in it."""
    seen: set[int] = set()
    left = [error]
    while left:
        one = left.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            inner = (*one.args, one.__cause__, one.__context__, getattr(one, "reason", None))
            left.extend(each for each in inner if isinstance(each, BaseException))


_REASONS: tuple[tuple[str, tuple[type[BaseException], ...]], ...] = (
    ("its certificate is not trusted (CERTIFICATE_VERIFY_FAILED)", (ssl.SSLCertVerificationError,)),
    ("TLS failed", (ssl.SSLError, requests.exceptions.SSLError)),
    ("its name has no address", (socket.gaierror, urllib3.exceptions.NameResolutionError)),
    ("the proxy did not answer", (requests.exceptions.ProxyError, urllib3.exceptions.ProxyError)),
    ("it took too long", (TimeoutError, requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)),
    ("the connection was refused", (ConnectionRefusedError,)),
    ("the connection broke off", (ConnectionError, urllib3.exceptions.ProtocolError)),
    ("its data is damaged", (zlib.error,)),
)


def _prepared(target: Target) -> requests.PreparedRequest:
    try:
        return requests.Request("GET", target.url, headers={**_HEADERS, "Host": target.netloc}).prepare()
    except (requests.RequestException, ValueError) as error:
        raise FetchFailed(f"not the address of a page ({type(error).__name__})") from None


class _Inflate:
    """Decodes a content encoding within limits: a few kilobytes may expand to many."""

    def __init__(self, encoding: str) -> None:
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise FetchFailed(f"the page is encoded as {encoding}, which was not asked for")
        # 32 + MAX_WBITS: gzip or zlib, by the first bytes
        self._stream = zlib.decompressobj(32 + zlib.MAX_WBITS) if encoding not in ("", "identity") else None
        self._may_be_raw = encoding == "deflate"

    def __call__(self, chunk: bytes, most: int) -> bytes:
        if self._stream is None:
            return chunk[:most]
        try:
            data = self._stream.decompress(chunk, most)
        except zlib.error:
            if not self._may_be_raw:
                raise
            self._stream = zlib.decompressobj(-zlib.MAX_WBITS)  # some servers send deflate without its header
            data = self._stream.decompress(chunk, most)
        self._may_be_raw = False
        return data


class Timed(HTTPAdapter):
    """Sends one request, whose answer ends by a moment of `time.monotonic()`."""

    def __init__(self, deadline: float) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)
        self._deadline = deadline

    def __enter__(self) -> Timed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        kind = _TimedHTTPS if pool.scheme == "https" else _TimedHTTP
        pool.ConnectionCls = functools.partial(kind, deadline=self._deadline)
        return pool


class _Pinned(Timed):
    """Connects to one address, whatever its name resolves to now; TLS still checks the name."""

    def __init__(self, target: Target, address: str, deadline: float) -> None:
        super().__init__(deadline)
        self._target, self._address = target, address

    def build_connection_pool_key_attributes(self, *args: Any, **kwargs: Any) -> Any:
        host: Any
        tls: Any
        host, tls = super().build_connection_pool_key_attributes(*args, **kwargs)
        host["host"] = self._address
        if self._target.scheme == "https":
            tls["server_hostname"] = self._target.host
        return host, tls


class _TimedHTTP(HTTPConnection):
    def __init__(self, *args: Any, deadline: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline = deadline

    def connect(self) -> None:
        super().connect()
        self.sock: Any = _Timed(self.sock, self._deadline)


class _TimedHTTPS(_TimedHTTP, HTTPSConnection):
    pass


class _Timed:
    """A socket whose every read has the time left of the whole.

    A socket's own timeout restarts with each byte: a slow site would hold a thread for hours.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_TimedReads(self._sock, self._deadline))


class _TimedReads(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open as long as this object

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the page did not come in time")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
