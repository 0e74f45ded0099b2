"""Markdown, as it is, by the headings above each part."""

from __future__ import annotations

import re
from collections.abc import Iterator

from embedshare.text.documents.pieces import Piece

#: Characters of a line beyond which it is no heading, and is not waited for.
MAX_LINE = 4096

_HASHES = re.compile(r" {0,3}#{1,6}(?:[ \t]+(?P<title>\S[^\n]*))?\n?$")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)[ \t]*\n?$")
_FENCE = re.compile(r" {0,3}(?P<marks>`{3,}|~{3,})")
#: Lines that no underline makes a heading of: lists, quotes, tables, code.
_NO_TITLE = re.compile(r" {0,3}(?:[-*+>|]|\d+[.)]) | {4}|\t|\s*$")


class Markdown:
    """A heading belongs to the part below it. Those in code and in the front matter are none."""

    def __init__(self) -> None:
        self._line = ""
        self._heading: str | None = None
        #: Lines of the part that `_heading` is above; the last one may yet be underlined as a heading.
        self._lines: list[str] = []
        self._fence: str | None = None
        self._is_first = True

    def feed(self, text: str) -> Iterator[Piece]:
        """The pieces that this text completes."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            yield from self._read(line + "\n")
        if len(self._line) > MAX_LINE:
            self._lines.append(self._line)
            self._line = ""
        yield from self._part(keep=1)

    def end(self) -> Iterator[Piece]:
        """The rest."""
        if self._line:
            yield from self._read(self._line)
        yield from self._part()

    def _read(self, line: str) -> Iterator[Piece]:
        is_first, self._is_first = self._is_first, False
        if self._is_code(line, is_first):
            self._lines.append(line)
        elif self._is_underline(line):
            title = self._lines[-1]
            yield from self._part(keep=1)
            self._heading = title.strip()
            self._lines.append(line)
        else:
            found = _HASHES.match(line) if len(line) <= MAX_LINE else None
            if found is not None:
                yield from self._part()
                self._heading = _without_closing(found["title"] or "") or None
            self._lines.append(line)

    def _is_code(self, line: str, is_first: bool) -> bool:
        """Whether it is in a fence, or begins or ends one; front matter has fences of its own."""
        if is_first and line.rstrip() == "---":
            self._fence = "---"
            return True
        fence = _FENCE.match(line)
        if self._fence is None:
            self._fence = fence["marks"] if fence else None
            return fence is not None
        if self._fence == "---":
            ends = line.rstrip() in ("---", "...")
        else:
            ends = line.strip().startswith(self._fence) and not line.strip().strip(self._fence[0])
        if ends:
            self._fence = None
        return True

    def _is_underline(self, line: str) -> bool:
        title = self._lines[-1] if self._lines else ""
        is_heading = _HASHES.match(title) or _UNDERLINE.match(title) or _FENCE.match(title)
        return bool(
            _UNDERLINE.match(line)
            and len(title) <= MAX_LINE
            and not _NO_TITLE.match(title)
            and not is_heading
        )

    def _part(self, keep: int = 0) -> Iterator[Piece]:
        """The lines so far, but for the last `keep`."""
        ready, self._lines = self._lines[: len(self._lines) - keep], self._lines[-keep:] if keep else []
        if ready:
            yield Piece("".join(ready), None, self._heading)


def _without_closing(title: str) -> str:
    """A title without the hashes after it. An expression would take quadratic time for a line of spaces."""
    bare = title.strip().rstrip("#")
    return bare.strip() if not bare or bare[-1].isspace() else title.strip()
