"""What a site sent, and what there is to read in it."""

from __future__ import annotations

import msgspec


class Page(msgspec.Struct, frozen=True):
    """What a site sent."""

    url: str
    """Where it came from, after redirects."""
    content: bytes
    """Decompressed, and the beginning of a page that is too long."""
    content_type: str
    charset: str | None
    """What the header says, which need not be true."""


class Document(msgspec.Struct, frozen=True):
    """What there is to read on a page; `text` is empty where there is nothing."""

    title: str
    text: str
    """One paragraph a line."""


class SearchResult(msgspec.Struct, frozen=True):
    """A link that an engine found."""

    url: str
    title: str = ""
    snippet: str = ""
