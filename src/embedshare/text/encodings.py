"""Finds out the encoding of a text."""

from __future__ import annotations

import codecs
import re

#: The marks that some texts begin with, the longer ones first.
BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
#: The encodings of most texts; with all encodings, short texts are often taken for rare ones.
_GUESSED = [
    *("cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1255", "cp1256"),
    *("koi8_r", "shift_jis", "euc_jp", "euc_kr", "gb18030", "big5"),
]
_GUESSED_BYTES = 50_000
_META = re.compile(
    rb"<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*[\"']?\s*([\w:.-]+)", re.IGNORECASE
)
#: Encodings as browsers read their names: sites that say Latin-1 send Windows' own quotation marks.
_MEANT = {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}


def of_bom(head: bytes) -> str | None:
    """The encoding that the first four bytes name."""
    return next((encoding for bom, encoding in BOMS.items() if head.startswith(bom)), None)


def of_zeros(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, of a text that begins with ASCII."""
    zeros = [byte == 0 for byte in head]
    return {
        (False, True, False, True): "utf-16-le",
        (True, False, True, False): "utf-16-be",
        (False, True): "utf-16-le",
        (True, False): "utf-16-be",
        (False, True, True, True): "utf-32-le",
        (True, True, True, False): "utf-32-be",
    }.get(tuple(zeros))


def guess(content: bytes) -> str | None:
    """The likeliest encoding of a text that is not UTF-8."""
    import charset_normalizer  # late: few texts need it

    best = charset_normalizer.from_bytes(content[:_GUESSED_BYTES], cp_isolation=_GUESSED).best()
    return best.encoding if best else None


def decoded(content: bytes, charset: str | None) -> str:
    """The text of a page `content`, whose end may be missing; `charset` is from the site's header.

    Bytes beyond ASCII that are valid UTF-8 are UTF-8 whatever header and page say. Otherwise header and page
    are believed; if they are wrong or silent the encoding is guessed.
    """
    bom = of_bom(content[:4])
    if bom is not None:
        return content.decode(bom, "replace")
    meta = _META.search(content[:2048])
    claims = [charset, meta[1].decode("ascii") if meta else None]
    for claim in claims if content.isascii() else ["utf-8", *claims]:
        text = _strictly(content, claim) if claim else None
        if text is not None:
            return text
    return content.decode(guess(content) or "utf-8", "replace")


def _strictly(content: bytes, encoding: str) -> str | None:
    try:
        name = codecs.lookup(encoding).name
        decoder = codecs.getincrementaldecoder(_MEANT.get(name, name))()
        text = decoder.decode(content)  # not final: the cut may split a character
    except (LookupError, ValueError, AttributeError, TypeError):
        return None  # unknown, wrong, or a codec that is not for text
    return text if isinstance(text, str) else None
