"""Word documents (docx): paragraphs and tables in their order. Runs in a process of its own."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedshare.errors import DocumentUnreadable
from embedshare.text.documents.pieces import Piece

if TYPE_CHECKING:
    from docx.document import Document

#: Files in the zip: a document of a thousand pictures has a little over a thousand.
MAX_PARTS = 10_000
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
#: What stands a second time: a text box for an old program, text where it was before it was moved.
_AGAIN = ("{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback", f"{_W}moveFrom")
#: Content controls, marks of other programs, and changes that are not accepted yet.
_WRAPPERS = ("sdt", "sdtContent", "customXml", "smartTag", "ins", "moveTo")
_SPACE = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n"}
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")


def read(path: Path, max_unpacked: int) -> Iterator[Piece]:
    """Pieces by the headings above them. Raises DocumentUnreadable."""
    import docx

    _check(path, max_unpacked)
    heading: str | None = None
    for text, is_heading in _blocks(docx.Document(str(path))):
        heading = text.strip() if is_heading else heading
        yield Piece(text + "\n\n", None, heading)


def _check(path: Path, max_unpacked: int) -> None:
    """Raise DocumentUnreadable for what is no zip, and before it is unpacked for what would be too large."""
    with path.open("rb") as file:
        if file.read(8) == _OLE:
            raise _not_docx(_ENCRYPTED in path.read_bytes())
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            archive.getinfo("[Content_Types].xml")
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, KeyError):
        raise DocumentUnreadable("the file is no docx, or a damaged one", reason="damaged") from None
    size = sum(part.file_size for part in parts)  # zipfile reads no more of a part than it declares
    if size > max_unpacked or len(parts) > MAX_PARTS:
        raise DocumentUnreadable(
            f"the docx has {len(parts):,} parts of together {size:,} bytes unpacked; {MAX_PARTS:,} parts and "
            f"{max_unpacked:,} bytes are allowed",
            reason="too_large",
        )
    if any(part.flag_bits & 1 for part in parts):
        raise _not_docx(encrypted=True)


def _not_docx(encrypted: bool) -> DocumentUnreadable:
    if encrypted:
        return DocumentUnreadable(
            "the document is encrypted: save it without its password", reason="encrypted"
        )
    return DocumentUnreadable(
        "the document is of an old version of Word: save it as docx", reason="unsupported"
    )


def _blocks(document: Document) -> Iterator[tuple[str, bool]]:
    """Each paragraph's or table's text, and whether it is a heading.

    By the elements themselves: python-docx passes over content controls, inserted text and text boxes.
    """
    headings = {style.style_id for style in document.styles if _names_heading(style.name)}
    for block in _children(document.element.body, "p", "tbl"):
        is_table = block.tag == f"{_W}tbl"
        text = _table_text(block) if is_table else _text(block)
        if text.strip():
            style = block.find(f"{_W}pPr/{_W}pStyle")
            yield text, style is not None and style.get(f"{_W}val") in headings


def _children(element: Any, *names: str) -> Iterator[Any]:
    """The children of these names, and those in what only wraps them."""
    for child in element:
        name = str(child.tag).removeprefix(_W)
        if name in names:
            yield child
        elif name in _WRAPPERS:
            yield from _children(child, *names)


def _text(paragraph: Any) -> str:
    """Of all of its runs, but what stands a second time."""
    return "".join(
        _SPACE.get(part.tag) or part.text or ""
        for part in paragraph.iter(f"{_W}t", *_SPACE)
        if part.getparent().tag == f"{_W}r" and next(part.iterancestors(*_AGAIN), None) is None
    )


def _names_heading(style: str | None) -> bool:
    """Whether a style is for headings: their names are English in every language."""
    return style is not None and (style.startswith("Heading") or style == "Title")


def _table_text(table: Any) -> str:
    """A line for each row."""
    rows = (
        (" ".join(_text(one) for one in cell.iter(f"{_W}p")) for cell in _children(row, "tc"))
        for row in _children(table, "tr")
    )
    lines = (" | ".join(filter(None, (" ".join(cell.split()) for cell in row))) for row in rows)
    return "\n".join(filter(None, lines))
