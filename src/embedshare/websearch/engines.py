"""Search engines: links for a query."""

from __future__ import annotations

import ipaddress
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
import requests

from embedshare.errors import InvalidSetting, SearchFailed
from embedshare.settings import Settings
from embedshare.websearch.asking import Asking
from embedshare.websearch.connecting import AGENT
from embedshare.websearch.result import Result

#: Seconds that an engine has for its answer.
ENGINE_S = 10.0


class Engine(Protocol):
    """Who finds pages."""

    def search(self, query: str, limit: int) -> list[Result]:
        """At most `limit` links, the best first. Raises SearchFailed."""


def engine(settings: Settings) -> Engine:
    """The engine that the settings name."""
    if settings.search_engine == "ddgs":
        return Ddgs()
    if settings.searxng_url is None:
        raise InvalidSetting(
            "EMBEDDING_SEARCH_ENGINE is searxng, and EMBEDDING_SEARXNG_URL says not where it is",
            name="EMBEDDING_SEARXNG_URL",
            value="",
            allowed="an address that begins with http:// or https://",
        )
    return SearXNG(settings.searxng_url)


class Ddgs:
    """Public search engines, asked through the library ddgs."""

    def __init__(self) -> None:
        self._asking = Asking()

    def search(self, query: str, limit: int) -> list[Result]:
        return _distinct(self._asking.results(query, limit, ENGINE_S), limit)


class _Found(msgspec.Struct):
    url: str
    title: str | None = None
    content: str | None = None


class _Reply(msgspec.Struct):
    results: list[_Found]


class SearXNG:
    """A SearXNG, whose operator allows the format json. The address is this process's own setting, and so not
    held to the rules for pages."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/search"
        # A proxy of the environment is meant for the internet: an address of one's own is reached without it.
        self._proxies = {"no_proxy": "*"} if _is_internal(urlsplit(url).hostname or "") else None

    def search(self, query: str, limit: int) -> list[Result]:
        asked: dict[str, Any] = {"q": query, "format": "json"}
        try:
            reply = requests.get(
                self._url,
                params=asked,
                timeout=ENGINE_S,
                headers={"User-Agent": AGENT},
                proxies=self._proxies,
            )
        except requests.RequestException as error:
            raise SearchFailed(f"SearXNG did not answer: {type(error).__name__}") from None
        if reply.status_code == 403:
            raise SearchFailed("SearXNG refuses the format json: its settings.yml must name it under formats")
        if reply.status_code != 200:
            raise SearchFailed(f"SearXNG answered {reply.status_code}")
        try:
            found = msgspec.json.decode(reply.content, type=_Reply).results
        except (msgspec.DecodeError, UnicodeError) as error:
            raise SearchFailed(f"SearXNG answered what is no list of results: {error}") from None
        return _distinct([Result(one.url, one.title or "", one.content or "") for one in found], limit)


def _is_internal(host: str) -> bool:
    """Whether a host is plainly not on the internet: this machine, a private address, a name without a
    domain, as a container's."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith(".localhost")


def _distinct(results: list[Result], limit: int) -> list[Result]:
    kept: dict[str, Result] = {}
    for result in results:
        if result.url:
            kept.setdefault(result.url, result)
    return list(kept.values())[:limit]
