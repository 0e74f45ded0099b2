"""Search engines: links for a query."""

from __future__ import annotations

import ipaddress
import time
from typing import Any, Protocol
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec
import requests
import urllib3

from embedshare.errors import FetchFailed, InvalidSetting, SearchFailed
from embedshare.settings import Settings
from embedshare.websearch import http_client
from embedshare.websearch.ddgs_process import DdgsProcess
from embedshare.websearch.types import SearchResult

#: Seconds for an engine's answer.
ENGINE_S = 10.0
#: The largest answer of a SearXNG, which usually has some tens of kilobytes.
MAX_ANSWER_BYTES = 4_000_000
#: The redirects of a SearXNG, as from http to https.
MAX_REDIRECTS = 3
_HEADERS = {"User-Agent": http_client.AGENT, "Accept": "application/json", "Accept-Encoding": "gzip, deflate"}


class Engine(Protocol):
    """A search engine."""

    def search(self, query: str, limit: int) -> list[SearchResult]:
        """At most `limit` links, the best first. Raises SearchFailed."""


def engine(settings: Settings) -> Engine:
    """The engine that the settings name."""
    if settings.search.engine == "ddgs":
        return Ddgs()
    if settings.search.searxng_url is None:
        raise InvalidSetting(
            "EMBEDDING_SEARCH_ENGINE is searxng, and EMBEDDING_SEARXNG_URL is not set",
            name="EMBEDDING_SEARXNG_URL",
            value="",
            allowed="an address that begins with http:// or https:// and a host",
        )
    return SearXNG(settings.search.searxng_url)


class Ddgs:
    """Public search engines, through the library ddgs."""

    def __init__(self) -> None:
        self._asking = DdgsProcess()

    def search(self, query: str, limit: int) -> list[SearchResult]:
        return _distinct(self._asking.results(query, limit, ENGINE_S), limit)


class _Found(msgspec.Struct):
    url: str
    title: str | None = None
    content: str | None = None


class _Reply(msgspec.Struct):
    results: list[_Found]


class SearXNG:
    """A SearXNG whose operator allows the format json. Its address is this process's own setting, and so not
    subject to the rules for pages."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/search"

    def search(self, query: str, limit: int) -> list[SearchResult]:
        asked = urlencode({"q": query, "format": "json"})
        content = self._get(f"{self._url}?{asked}", time.monotonic() + ENGINE_S, MAX_REDIRECTS)
        try:
            found = msgspec.json.decode(content, type=_Reply).results
        except (msgspec.DecodeError, UnicodeError) as error:
            raise SearchFailed(f"SearXNG's answer is not a list of results: {error}") from None
        return _distinct([SearchResult(one.url, one.title or "", one.content or "") for one in found], limit)

    def _get(self, url: str, deadline: float, redirects: int) -> bytes:
        """The answer, by the deadline. Raises SearchFailed, also for one over MAX_ANSWER_BYTES."""
        session = requests.Session()
        left = max(0.001, deadline - time.monotonic())
        try:
            request = session.prepare_request(requests.Request("GET", url, headers=_HEADERS))
            # The environment's proxies are for the internet: a private address is reached without one.
            proxies = {"no_proxy": "*"} if _is_internal(urlsplit(url).hostname or "") else {}
            around: dict[str, Any] = {**session.merge_environment_settings(url, proxies, True, True, None)}
            with (
                http_client.Timed(deadline) as adapter,
                adapter.send(request, timeout=(left, left), **around) as reply,
            ):
                location = reply.headers.get("Location")
                if reply.is_redirect and location:
                    if not redirects:
                        raise SearchFailed(f"SearXNG redirects more than {MAX_REDIRECTS} times")
                    return self._get(urljoin(url, location), deadline, redirects - 1)
                if reply.status_code == 403:
                    raise SearchFailed(
                        "SearXNG refuses the format json: its settings.yml must name it under formats"
                    )
                if reply.status_code != 200:
                    raise SearchFailed(f"SearXNG answered {reply.status_code}")
                content = http_client.body(reply, deadline, MAX_ANSWER_BYTES + 1)
        except FetchFailed as error:
            raise SearchFailed(f"SearXNG's answer could not be read: {error.message}") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise SearchFailed(f"SearXNG did not answer: {http_client.reason_of(error)}") from None
        if len(content) > MAX_ANSWER_BYTES:
            raise SearchFailed(f"SearXNG answered with more than {MAX_ANSWER_BYTES:,} bytes")
        return content


def _is_internal(host: str) -> bool:
    """Whether a host is certainly not on the internet: this machine, a private address, a name without a
    domain, as a container's."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith(".localhost")


def _distinct(results: list[SearchResult], limit: int) -> list[SearchResult]:
    kept: dict[str, SearchResult] = {}
    for result in results:
        if result.url:
            kept.setdefault(result.url, result)
    return list(kept.values())[:limit]
