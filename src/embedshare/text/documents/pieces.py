"""What documents are read as, and the limits of reading."""

from __future__ import annotations

from typing import NamedTuple


class Piece(NamedTuple):
    """A run of a document's text, in reading order. The document's text is that of its pieces, joined."""

    text: str
    page: int | None = None
    """From 1, for pdf."""

    heading: str | None = None
    """The nearest heading above, for md, html and docx."""


class ReadingLimits(NamedTuple):
    """Limits of one document; the defaults suit a service that strangers send files to."""

    max_bytes: int = 256 << 20
    """Of the file."""

    max_text_chars: int = 256 << 20
    """Of its text, which can be far longer than a compressed file."""

    seconds: float = 60.0
    """For reading a pdf, docx or html once it has arrived, and for waiting until a process is free."""

    memory_bytes: int = 1 << 30
    """Of the process that reads a pdf, docx or html. A docx may unpack to an eighth of it."""
