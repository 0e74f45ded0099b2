"""Plain text and source code."""

from __future__ import annotations

from collections.abc import Iterator

from embedshare.text.documents.pieces import Piece


class Plain:
    """Text as it is."""

    def feed(self, text: str) -> Iterator[Piece]:
        """The pieces that this text completes."""
        if text:
            yield Piece(text)

    def end(self) -> Iterator[Piece]:
        """The rest."""
        yield from ()
