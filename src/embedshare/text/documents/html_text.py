"""HTML: all of its text but navigation, in the reader's order. Runs in a process of its own.

Not by trafilatura, which reads the web search's pages: it looks for the article among what else a site shows,
and drops text outside of paragraphs, and all headings of a page without `main` or `article`. A file that
someone uploads is meant whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from embedshare.errors import DocumentUnreadable
from embedshare.text.documents.pieces import Piece
from embedshare.text.encodings import decoded

_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
#: Elements that a reader does not see as text, and menus.
_HIDDEN = frozenset(
    ("head", "script", "style", "template", "noscript", "nav", "svg", "math", "iframe", "object", "select")
)
_PARAGRAPHS = _HEADINGS | frozenset(
    ("p", "div", "section", "article", "main", "table", "ul", "ol", "dl", "pre", "blockquote", "form")
)
_LINES = frozenset(("br", "li", "tr", "dt", "dd", "hr", "figure", "caption", "figcaption", "summary"))
_CELLS = frozenset(("td", "th"))
_SPACES = re.compile(r"\s+")
_LINE_SPACES = re.compile(r"(?<! ) +\n")
_EMPTY_LINES = re.compile(r"\n{3,}")
#: What XML does not allow, and lxml refuses.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_DECLARATION = re.compile(r"^\s*<\?xml[^>]{0,200}\?>")


def read(path: Path) -> Iterator[Piece]:
    """The pieces of the page in a file: a heading, which begins one, with the text below it."""
    from lxml import etree, html

    text = _DECLARATION.sub("", _CONTROLS.sub(" ", decoded(path.read_bytes(), None)))
    if not text.strip():
        return
    try:
        parser = html.HTMLParser(huge_tree=True)
        root = html.document_fromstring(text, parser)
    except (etree.ParserError, ValueError):  # nothing but comments
        return
    if parser.error_log.filter_from_fatals():  # the parser stops there, and gives what it has read
        raise DocumentUnreadable("the page is nested too deep", reason="too_large")
    yield from _Walk(_plain(root.findtext(".//title") or "")).pieces(root)


def _plain(text: str) -> str:
    return _SPACES.sub(" ", text).strip()


class _Walk:
    """Collects the text of a tree, without recursion: a page can be nested as deep as it likes."""

    def __init__(self, title: str) -> None:
        #: The part's text so far; that of a heading may still be missing from `_heading`.
        self._parts: list[str] = []
        self._heading: str | None = title or None
        self._preformatted = 0

    def pieces(self, root: object) -> Iterator[Piece]:
        from lxml import etree

        walk = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
        for event, element in walk:
            if event in ("comment", "pi"):
                self._add(element.tail)
            elif event == "start" and self._is_hidden(element):
                walk.skip_subtree()
            elif event == "start":
                if element.tag in _HEADINGS:
                    yield from self._piece()
                    self._heading = _plain(" ".join(element.itertext()))[:1000] or self._heading
                self._enter(element)
            else:
                self._leave(element)
        yield from self._piece()

    def _is_hidden(self, element: object) -> bool:
        tag, attributes = element.tag, element.attrib  # type: ignore[attr-defined]
        return (
            tag in _HIDDEN
            or "hidden" in attributes
            or attributes.get("role") == "navigation"
            or attributes.get("aria-hidden") == "true"
        )

    def _enter(self, element: object) -> None:
        tag = element.tag  # type: ignore[attr-defined]
        self._break(tag)
        self._preformatted += tag == "pre"
        self._add(element.text)  # type: ignore[attr-defined]

    def _leave(self, element: object) -> None:
        tag = element.tag  # type: ignore[attr-defined]
        if not self._is_hidden(element):
            self._preformatted -= tag == "pre"
            if tag != "br":
                self._break(tag)
        self._add(element.tail)  # type: ignore[attr-defined]

    def _break(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._parts.append("\n\n")
        elif tag == "br" or (tag in _LINES and self._last != "\n"):
            self._parts.append("\n")
        elif tag in _CELLS:
            self._add(" ")

    @property
    def _last(self) -> str:
        return self._parts[-1][-1] if self._parts else "\n"

    def _add(self, text: str | None) -> None:
        if text and not self._preformatted:
            text = _SPACES.sub(" ", text)
            text = text.lstrip() if self._last.isspace() else text
        if text:
            self._parts.append(text)

    def _piece(self) -> Iterator[Piece]:
        text = _EMPTY_LINES.sub("\n\n", _LINE_SPACES.sub("\n", "".join(self._parts))).strip()
        self._parts = []
        if text:
            yield Piece(text + "\n\n", None, self._heading)
