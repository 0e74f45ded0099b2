"""Tables as csv: each row becomes lines of a column's name and its value, and an empty line."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from embedshare.errors import DocumentUnreadable
from embedshare.text.documents.pieces import Piece

#: Characters of one row.
MAX_ROW = 1 << 20
#: Characters of the beginning by which the delimiter is found out, and columns that a row may have.
_HEAD, MAX_COLUMNS = 1 << 14, 10_000
_DELIMITERS = ",;\t|"
_MAX_NAME = 200


class Table:
    """The first row names the columns. An empty value is left out."""

    def __init__(self) -> None:
        self._held = ""
        self._delimiter = ""
        self._names: list[str] | None = None
        self._rows: list[str] = []
        self._row_chars = 0
        self._is_quoted = False
        self._row = 0

    def feed(self, text: str) -> Iterator[Piece]:
        """The pieces that this text completes."""
        self._held += text
        if not self._delimiter and len(self._held) < _HEAD:
            return
        text = self._read()
        if text:
            yield Piece(text)

    def end(self) -> Iterator[Piece]:
        """The rest."""
        text = self._read() + self._text([*self._rows, self._held])
        if text:
            yield Piece(text)

    def _read(self) -> str:
        texts = []
        self._delimiter = self._delimiter or delimiter_of(self._held)
        *lines, self._held = self._held.split("\n")
        for line in lines:
            self._rows.append(line + "\n")
            self._row_chars += len(line) + 1
            self._is_quoted = ends_quoted(self._rows[-1], self._delimiter, self._is_quoted)
            if self._is_quoted:
                self._check_row(self._row_chars)
            else:
                texts.append(self._text(self._rows))
                self._rows, self._row_chars = [], 0
        self._check_row(self._row_chars + len(self._held))
        return "".join(texts)

    def _check_row(self, chars: int) -> None:
        if chars > MAX_ROW:
            raise DocumentUnreadable(
                f"row {self._row + 1:,} of the table has over {MAX_ROW:,} characters; a quote may be missing",
                reason="too_large",
            )

    def _text(self, lines: list[str]) -> str:
        texts = []
        try:
            for row in csv.reader(lines, delimiter=self._delimiter):
                self._row += 1
                texts.append(self._row_text(row))
        except csv.Error as error:
            reason = "too_large" if "limit" in str(error) else "damaged"
            raise DocumentUnreadable(f"row {self._row + 1:,} of the table: {error}", reason=reason) from None
        return "".join(texts)

    def _row_text(self, row: list[str]) -> str:
        if len(row) > MAX_COLUMNS:
            raise DocumentUnreadable(
                f"row {self._row:,} of the table has {len(row):,} columns; {MAX_COLUMNS:,} are allowed",
                reason="too_large",
            )
        values = [value.strip() for value in row]
        if self._names is None:
            if any(values):
                self._names = [name[:_MAX_NAME] for name in values]
            return ""
        named = zip([*self._names, *[""] * len(values)], values, strict=False)
        lines = [f"{name}: {value}" if name else value for name, value in named if value]
        return "\n".join(lines) + "\n\n" if lines else ""


def delimiter_of(head: str) -> str:
    """The one that gives the first rows most columns, the same number each; a comma if none does."""
    lines = [line for line in head.split("\n")[:20] if line.strip()]

    def columns(delimiter: str) -> int:
        counts = [len(row) for row in csv.reader(lines[:-1] or lines, delimiter=delimiter)]
        return min(counts, default=0)

    try:
        return max(_DELIMITERS, key=columns)
    except csv.Error:
        return ","


def ends_quoted(line: str, delimiter: str, quoted: bool) -> bool:
    """Whether the end of a line is inside of quotes, as `csv.reader` reads them; `quoted`: its start is."""
    at = 0
    while True:
        if not quoted and line.startswith('"', at):
            quoted, at = True, at + 1
        if quoted:
            at = _after_quotes(line, at)
            if not at:
                return True
            quoted = False
        at = line.find(delimiter, at) + 1
        if not at:
            return False


def _after_quotes(line: str, at: int) -> int:
    """The position after the closing quote; 0 if there is none."""
    while True:
        at = line.find('"', at) + 1
        if not at or not line.startswith('"', at):
            return at
        at += 1
