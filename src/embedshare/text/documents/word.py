"""Word documents (docx): paragraphs and tables in their order. Runs in a process of its own."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from embedshare.errors import DocumentUnreadable
from embedshare.text.documents.pieces import Piece

if TYPE_CHECKING:
    from docx.document import Document
    from docx.table import Table
    from docx.text.paragraph import Paragraph

#: Files in the zip: a document of a thousand pictures has a little over a thousand.
MAX_PARTS = 10_000
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")


def read(path: Path, max_unpacked: int) -> Iterator[Piece]:
    """Pieces by the headings above them. Raises DocumentUnreadable."""
    _check(path, max_unpacked)
    heading: str | None = None
    for text, is_heading in _blocks(_opened(path)):
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
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        raise _damaged() from None
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


def _damaged() -> DocumentUnreadable:
    return DocumentUnreadable("the file is no docx, or a damaged one", reason="damaged")


def _opened(path: Path) -> Document:
    import docx

    try:
        return docx.Document(str(path))
    except MemoryError:
        raise
    except Exception:  # python-docx raises whatever its parts do: KeyError, ValueError, lxml's, zlib's
        raise _damaged() from None


def _blocks(document: Document) -> Iterator[tuple[str, bool]]:
    """Each paragraph's or table's text, and whether it is a heading."""
    from docx.table import Table

    for block in document.iter_inner_content():
        if isinstance(block, Table):
            text = _table_text(block)
            is_heading = False
        else:
            text, is_heading = block.text, _is_heading(block)
        if text.strip():
            yield text, is_heading


def _is_heading(paragraph: Paragraph) -> bool:
    """By the style's name in English, which Word writes in every language, or by its level in the outline."""
    style = paragraph.style
    name = (style.name or "") if style is not None else ""
    return name.startswith("Heading") or name == "Title"


def _table_text(table: Table) -> str:
    """A line for each row; a cell that spans several columns or rows stands once."""
    lines, seen = [], set()
    for row in table.rows:
        cells = []
        for cell in row.cells:
            if cell._tc not in seen:  # python-docx gives a new object each time
                seen.add(cell._tc)
                cells.append(" ".join(cell.text.split()))
        lines.append(" | ".join(filter(None, cells)))
    return "\n".join(filter(None, lines))
