"""Extracts a page's readable text and title, without navigation, in any encoding."""

from __future__ import annotations

import html
import re

import trafilatura
from loguru import logger

from embedshare.text.encodings import decoded
from embedshare.websearch.types import Document, Page

#: The most characters of readable text of one page.
MAX_CHARS = 100_000
#: The most characters of its title, which precedes each of its passages when they are embedded.
MAX_TITLE_CHARS = 200
#: Characters below which trafilatura has usually missed the page, which may be a table or a list of links.
MIN_CHARS = 200

_TITLE = re.compile(r"<title[^>]*>([^<]{0,1000})", re.IGNORECASE)
#: Characters without a meaning for XML or a reader.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_SPACES = re.compile(r"[^\S\n]+")


def readable(page: Page) -> Document:
    """The page's title and its readable text; runs in the separate process."""
    text = _CONTROLS.sub(" ", decoded(page.content, page.charset))
    if page.content_type == "text/plain":
        return Document("", _tidied(text))
    found = _TITLE.search(text)
    title = " ".join(html.unescape(found[1]).split())[:MAX_TITLE_CHARS] if found else ""
    return Document(title, _tidied(_main_text(text)))


def _main_text(text: str) -> str:
    try:
        # Recall before precision: the ranking drops irrelevant text, but cannot restore missing text.
        main = trafilatura.extract(text, include_comments=False, favor_recall=True, fast=True) or ""
        if len(main) >= MIN_CHARS:
            return main
        whole = trafilatura.html2txt(text)
    except Exception as error:  # untrusted input in a parser: no failure may end the search
        logger.debug("Could not read a page: {}", type(error).__name__)
        return ""
    return max(main, whole, key=len)


def _tidied(text: str) -> str:
    lines = (_SPACES.sub(" ", line).strip(" |") for line in text[: 4 * MAX_CHARS].splitlines())
    return "\n".join(filter(None, lines))[:MAX_CHARS]
