"""Extracts a page's readable text and title, without navigation, in any encoding."""

from __future__ import annotations

import codecs
import html
import re

import charset_normalizer
import trafilatura
from loguru import logger

from embedshare.websearch.types import Document, Page

#: The most characters of readable text of one page.
MAX_CHARS = 100_000
#: The most characters of its title, which precedes each of its passages when they are embedded.
MAX_TITLE_CHARS = 200
#: Characters below which trafilatura has usually missed the page, which may be a table or a list of links.
MIN_CHARS = 200

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
#: The encodings of most web pages; with all encodings, short texts are often taken for rare ones.
_GUESSED = [
    *("cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1255", "cp1256"),
    *("koi8_r", "shift_jis", "euc_jp", "euc_kr", "gb18030", "big5"),
]
_META = re.compile(
    rb"<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*[\"']?\s*([\w:.-]+)", re.IGNORECASE
)
_TITLE = re.compile(r"<title[^>]*>([^<]{0,1000})", re.IGNORECASE)
#: Characters without a meaning for XML or a reader.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_SPACES = re.compile(r"[^\S\n]+")
#: Encodings as browsers read their names: sites that say Latin-1 send Windows' own quotation marks.
_MEANT = {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}


def readable(page: Page) -> Document:
    """The page's title and its readable text; runs in the separate process."""
    text = _CONTROLS.sub(" ", decoded(page.content, page.charset))
    if page.content_type == "text/plain":
        return Document("", _tidied(text))
    found = _TITLE.search(text)
    title = " ".join(html.unescape(found[1]).split())[:MAX_TITLE_CHARS] if found else ""
    return Document(title, _tidied(_main_text(text)))


def decoded(content: bytes, charset: str | None) -> str:
    """The text of `content`, whose end may be missing; `charset` is from the site's header.

    Bytes beyond ASCII that are valid UTF-8 are UTF-8 whatever header and page say. Otherwise header and page
    are believed; if they are wrong or silent the encoding is guessed.
    """
    for bom, encoding in _BOMS.items():
        if content.startswith(bom):
            return content.decode(encoding, "replace")
    meta = _META.search(content[:2048])
    claims = [charset, meta[1].decode("ascii") if meta else None]
    for claim in claims if content.isascii() else ["utf-8", *claims]:
        text = _strictly(content, claim) if claim else None
        if text is not None:
            return text
    guess = charset_normalizer.from_bytes(content[:50_000], cp_isolation=_GUESSED).best()
    return content.decode(guess.encoding if guess else "utf-8", "replace")


def _strictly(content: bytes, encoding: str) -> str | None:
    try:
        name = codecs.lookup(encoding).name
        decoder = codecs.getincrementaldecoder(_MEANT.get(name, name))()
        text = decoder.decode(content)  # not final: the cut may split a character
    except (LookupError, ValueError, AttributeError, TypeError):
        return None  # unknown, wrong, or a codec that is not for text
    return text if isinstance(text, str) else None


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
