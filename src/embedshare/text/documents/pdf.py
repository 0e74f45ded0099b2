"""PDF, page by page. Runs in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedshare.errors import DocumentUnreadable
from embedshare.text.documents.pieces import Piece

#: How PDFium gives a hyphen at a line's end, by which a word goes on in the next line.
_HYPHENS = re.compile("[\ufffe\x02]\\s*")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\uffff]")
_WRONG_PASSWORD = 4


def read(path: Path) -> Iterator[Piece]:
    """A piece for each page with text. Raises DocumentUnreadable."""
    import pypdfium2
    from pypdfium2 import raw

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        raise _refused(error) from None
    has_pictures = has_text = False
    for number in range(len(document)):
        page = _page(document, number)
        text = _text(page)
        if text:
            has_text = True
            yield Piece(text + "\n\n", number + 1)
        elif not has_pictures:
            has_pictures = any(True for _ in page.get_objects([raw.FPDF_PAGEOBJ_IMAGE], max_depth=4))
        page.close()
    if has_pictures and not has_text:
        raise DocumentUnreadable(
            "the pdf holds pictures of its pages, without text: recognise its text first (OCR)",
            reason="scanned",
        )


def _page(document: Any, number: int) -> Any:
    import pypdfium2

    try:
        return document[number]
    except pypdfium2.PdfiumError:
        raise DocumentUnreadable(f"page {number + 1:,} of the pdf is damaged", reason="damaged") from None


def _text(page: Any) -> str:
    text_page = page.get_textpage()
    text = text_page.get_text_bounded(errors="replace")
    text_page.close()
    return _CONTROLS.sub(" ", _HYPHENS.sub("", text.replace("\r\n", "\n"))).strip()


def _refused(error: Any) -> DocumentUnreadable:
    if error.err_code == _WRONG_PASSWORD:
        return DocumentUnreadable("the pdf is encrypted: save it without its password", reason="encrypted")
    return DocumentUnreadable("the file is no pdf, or a damaged one", reason="damaged")
