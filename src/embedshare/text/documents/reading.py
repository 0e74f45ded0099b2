"""Reads one document as its bytes arrive."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from embedshare import private_file
from embedshare.errors import DocumentUnreadable, InvalidInput
from embedshare.text.documents import document_process
from embedshare.text.documents.decoding import TextDecoder
from embedshare.text.documents.json_values import JsonValues
from embedshare.text.documents.kinds import kind_of, kinds
from embedshare.text.documents.markdown import Markdown
from embedshare.text.documents.pieces import Piece, ReadingLimits
from embedshare.text.documents.plain import Plain
from embedshare.text.documents.tables import Table

__all__ = ["Piece", "Reader", "ReadingLimits", "kind_of", "kinds"]

#: Bytes that are decoded at once, however many arrive: a table's text is longer than the table.
STEP = 1 << 16


class _Parser(Protocol):
    def feed(self, text: str) -> Iterator[Piece]: ...

    def end(self) -> Iterator[Piece]: ...


_PARSERS: dict[str, type[_Parser]] = {
    "txt": Plain,
    "code": Plain,
    "md": Markdown,
    "csv": Table,
    "json": JsonValues,
}


class Reader:
    """Bytes of one document go in, its pieces come out: of text at once, of pdf, docx and html at the end.

    Each iterator must be read to its end before the next call. After an error there is only `close`.
    Raises InvalidInput for an unknown kind and MissingDependency.
    """

    def __init__(self, kind: str, limits: ReadingLimits) -> None:
        if kind not in kinds():
            raise InvalidInput(f"unknown kind of document {kind!r}; allowed: {', '.join(kinds())}")
        document_process.require(kind)
        self._limits = limits
        self._bytes = self._chars = 0
        self._is_blank = True
        self._way: _Streamed | _Spooled = _Streamed(kind) if kind in _PARSERS else _Spooled(kind, limits)

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The pieces that these bytes complete. Raises DocumentUnreadable."""
        self._bytes += len(data)
        if self._bytes > self._limits.max_bytes:
            raise DocumentUnreadable(
                f"the document has more than the {self._limits.max_bytes:,} bytes that are allowed",
                reason="too_large",
            )
        for at in range(0, len(data), STEP):
            yield from self._counted(self._way.feed(data[at : at + STEP]))

    def end(self) -> Iterator[Piece]:
        """The rest of the pieces. Raises DocumentUnreadable, and Overloaded if no process was free."""
        if self._bytes:
            yield from self._counted(self._way.end())
        if self._is_blank:
            raise DocumentUnreadable("the document has no text", reason="empty")

    def close(self) -> None:
        """Remove what was stored of it; may be called again."""
        self._way.close()

    def _counted(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self._chars += len(piece.text)
            if self._chars > self._limits.max_text_chars:
                raise document_process.too_much_text(self._limits)
            self._is_blank = self._is_blank and not piece.text.strip()
            yield piece


class _Streamed:
    """A document that is text."""

    def __init__(self, kind: str) -> None:
        self._decoder, self._parser = TextDecoder(), _PARSERS[kind]()
        self._is_blank = True

    def feed(self, data: bytes) -> Iterator[Piece]:
        return self._parsed(self._decoder.feed(data))

    def end(self) -> Iterator[Piece]:
        yield from self._parsed(self._decoder.end())
        if not self._is_blank:
            yield from self._parser.end()

    def close(self) -> None:
        """Nothing is stored."""

    def _parsed(self, text: str) -> Iterator[Piece]:
        self._is_blank = self._is_blank and not text.strip()
        return self._parser.feed(text)


class _Spooled:
    """A document whose parts are in no order that it could be read in: it is kept in a file until its end."""

    def __init__(self, kind: str, limits: ReadingLimits) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="embedshare-document-", ignore_cleanup_errors=True)
        source, self._target = Path(self._folder.name, "document"), Path(self._folder.name, "pieces")
        self._task = document_process.Task(kind, str(source), str(self._target), limits)
        for path in (source, self._target):
            private_file.create(path)
        self._file = source.open("wb")

    def feed(self, data: bytes) -> Iterator[Piece]:
        self._file.write(data)
        return iter(())

    def end(self) -> Iterator[Piece]:
        self._file.close()
        document_process.read(self._task)
        yield from document_process.written(self._target)

    def close(self) -> None:
        self._file.close()
        self._folder.cleanup()
