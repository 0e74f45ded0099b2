"""The web search's values: pages as sites send them, and their readable text."""

from __future__ import annotations

import msgspec


class Page(msgspec.Struct, frozen=True):
    """A site's answer."""

    url: str
    """Its address, after redirects."""
    content: bytes
    """Decompressed; only the beginning of a page that is too long."""
    content_type: str
    charset: str | None
    """The header's encoding, which may be wrong."""


class Document(msgspec.Struct, frozen=True):
    """A page's readable text; `text` is empty if there is none."""

    title: str
    text: str
    """One paragraph a line."""


class SearchResult(msgspec.Struct, frozen=True):
    """A link that an engine found."""

    url: str
    title: str = ""
    snippet: str = ""
