"""What a search engine finds."""

from __future__ import annotations

import msgspec


class Result(msgspec.Struct, frozen=True):
    """A link that an engine found."""

    url: str
    title: str = ""
    snippet: str = ""
