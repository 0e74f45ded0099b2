"""Settings of the web search: permission, engine, and allowed hosts."""

from __future__ import annotations

import dataclasses

from embedshare.settings import parsing
from embedshare.settings.declaration import Section, setting


@dataclasses.dataclass(frozen=True)
class SearchSettings(Section):
    TITLE = "Web search"

    # fmt: off
    over_http: str = setting("EMBEDDING_WEB_SEARCH", parsing.choice("auto", "true", "false"), "auto",
        "Web search for callers of a web worker (`POST /search`): true, false, or auto (only where "
        "`EMBEDDING_HOST` is reachable from this machine alone)")
    engine: str = setting("EMBEDDING_SEARCH_ENGINE", parsing.choice("ddgs", "searxng"), "ddgs",
        "Search engine that finds pages: ddgs (public engines) or searxng (`EMBEDDING_SEARXNG_URL`)")
    searxng_url: str | None = setting("EMBEDDING_SEARXNG_URL", parsing.web_address, None,
        "URL of the SearXNG instance, which must offer the format json")
    fetch_allowed_hosts: str = setting("EMBEDDING_FETCH_ALLOWED_HOSTS", parsing.hosts_with_ports, "",
        "Internal hosts that a web search may fetch pages from, as `wiki.example,10.0.0.5:8080`. Public "
        "hosts need no entry; other internal hosts are refused")
