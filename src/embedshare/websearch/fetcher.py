"""Fetches one page: from public addresses, if robots.txt allows it, within a time and a size."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.message import Message
from urllib.parse import urljoin

import msgspec
import requests

from embedshare.errors import FetchFailed
from embedshare.websearch.address_policy import AddressPolicy, Target
from embedshare.websearch.http_client import answer, body
from embedshare.websearch.robots import Robots
from embedshare.websearch.types import Page

MAX_BYTES = 2_000_000
MAX_REDIRECTS = 5
ROBOTS_S = 3.0
ROBOTS_BYTES = 500_000  # RFC 9309: a crawler reads at least this much
CONTENT_TYPES = frozenset({"text/html", "application/xhtml+xml", "text/plain"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


_Read = Callable[[Target, requests.Response, float], Page]


class Fetcher:
    """Thread-safe. It keeps only robots.txt rules."""

    def __init__(self, addresses: AddressPolicy) -> None:
        self._addresses = addresses
        self._robots = Robots(self._fetch_rules)

    def fetch(self, url: str, deadline: float) -> Page:
        """The page at `url`, by the moment `deadline` of `time.monotonic()`.

        Raises AddressRefused, and FetchFailed for a page that cannot be fetched.
        """
        return self._follow(self._addresses.target(url, deadline), deadline, _page, self._robots.check)

    def fetch_file(self, url: str, deadline: float, max_bytes: int) -> bytes:
        """The file at `url`, whatever it holds, by the moment `deadline`; robots.txt is not asked.

        Raises AddressRefused, and FetchFailed for one that cannot be fetched or has more than `max_bytes`.
        """

        def read(target: Target, response: requests.Response, deadline: float) -> Page:
            _check_found(target, response)
            return Page(target.url, body(response, deadline, max_bytes + 1), "", None)

        content = self._follow(self._addresses.target(url, deadline), deadline, read, _unchecked).content
        if len(content) > max_bytes:
            raise FetchFailed(f"the file has over {max_bytes:,} bytes")
        return content

    def _follow(
        self, target: Target, deadline: float, read: _Read, check: Callable[[Target, float], None]
    ) -> Page:
        for _ in range(MAX_REDIRECTS + 1):
            check(target, deadline)
            with answer(target, deadline) as response:
                location = response.headers.get("Location")
                if response.status_code not in _REDIRECTS or not location:
                    return read(target, response, deadline)
            target = self._addresses.target(_joined(target.url, location), deadline)
        raise FetchFailed(f"more than {MAX_REDIRECTS} redirects")

    def _fetch_rules(self, target: Target, deadline: float) -> bytes:
        deadline = min(deadline, time.monotonic() + ROBOTS_S)
        # of the same addresses: a checked name is not resolved again
        rules = msgspec.structs.replace(target, url=f"{target.origin}/robots.txt")
        return self._follow(rules, deadline, _rules, _unchecked).content


def _unchecked(target: Target, deadline: float) -> None:
    """Of files that no rules are asked for."""


def _joined(base: str, location: str) -> str:
    try:
        # Headers are Latin-1 to http.client; sites write UTF-8 into this one.
        return urljoin(base, location.encode("latin-1").decode("utf-8"))
    except UnicodeError:
        return urljoin(base, location)
    except ValueError as error:
        raise FetchFailed(
            f"a redirect to something that is not an address ({type(error).__name__})"
        ) from None


def _check_found(target: Target, response: requests.Response) -> None:
    if response.status_code != 200:
        raise FetchFailed(f"{target.host} answered {response.status_code}")


def _page(target: Target, response: requests.Response, deadline: float) -> Page:
    _check_found(target, response)
    header = Message()
    header["Content-Type"] = response.headers.get("Content-Type", "")
    kind = header.get_content_type() if response.headers.get("Content-Type") else "text/html"
    if kind not in CONTENT_TYPES:
        raise FetchFailed(f"{target.host} sent {kind}, which is not a page of text")
    return Page(target.url, body(response, deadline, MAX_BYTES), kind, header.get_content_charset())


def _rules(target: Target, response: requests.Response, deadline: float) -> Page:
    """RFC 9309: a site without rules forbids nothing, a failing one everything."""
    status = response.status_code
    if status >= 500 or status == 429:
        raise FetchFailed(f"{target.host} answered {status} for its robots.txt")
    content = body(response, deadline, ROBOTS_BYTES) if status == 200 else b""
    return Page(target.url, content, "text/plain", None)
