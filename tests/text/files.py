"""Small documents, made here: pdf without a library that writes them, docx by python-docx."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import docx
from docx.oxml.ns import qn

#: A grey picture of one pixel, as a page that was scanned.
_PICTURE = (
    b"<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 "
)


def pdf(*pages: str, picture: bool = False) -> bytes:
    """A pdf with a line of text on each page, or a picture where the text is empty."""
    count = len(pages)
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    objects += [b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>", stream(b"\x80", _PICTURE)]
    kids = []
    for text in pages:
        kids.append(f"{len(objects) + 1} 0 R")
        lines = "".join(f"({line}) Tj 0 -14 Td " for line in text.split("\n"))
        drawn = f"BT /F1 12 Tf 72 720 Td {lines}ET" if text else "q 200 0 0 200 72 500 cm /I1 Do Q"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects) + 2} 0 R "
            f"/Resources << /Font << /F1 3 0 R >> /XObject << /I1 4 0 R >> >> >>".encode()
        )
        objects.append(stream(drawn.encode("latin-1") if text or picture else b"", b"<< "))
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {count} >>".encode()
    return whole_pdf(objects)


def stream(data: bytes, head: bytes) -> bytes:
    return head + b"/Length %d >>\nstream\n%s\nendstream" % (len(data), data)


def whole_pdf(objects: list[bytes], trailer: bytes = b"") -> bytes:
    """The file of these objects, the first of which is the catalog."""
    out, places = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, content in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer\n<< /Size %d /Root 1 0 R %s>>\n" % (len(objects) + 1, trailer))
    out.write(b"startxref\n%d\n%%%%EOF\n" % start)
    return out.getvalue()


def encrypted_pdf() -> bytes:
    """A pdf whose password is not the empty one."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [] /Count 0 >>",
        b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >>" % (b"11" * 32, b"22" * 32),
    ]
    return whole_pdf(objects, b"/Encrypt 3 0 R /ID [<00112233> <00112233>] ")


def word() -> bytes:
    """A docx with headings and a table."""
    document = docx.Document()
    document.add_heading("Mills", 1)
    document.add_paragraph("The mill stands at the river.")
    document.add_heading("Corn", 2)
    document.add_paragraph("It grinds corn.")
    table = document.add_table(2, 2)
    for row, texts in zip(table.rows, [("part", "age"), ("wheel", "1701")], strict=True):
        row.cells[0].text, row.cells[1].text = texts
    merged = table.add_row().cells
    merged[0].merge(merged[1]).text = "both"
    after = document.add_paragraph("After,")
    for wrapped in ("ins", "sdt"):
        wrapper = after._p.makeelement(qn(f"w:{wrapped}"), {})
        run = after.add_run(f" in {wrapped}")._r
        (wrapper if wrapped == "ins" else _added(wrapper, "sdtContent")).append(run)
        after._p.append(wrapper)
    control = after._p.makeelement(qn("w:sdt"), {})
    document.element.body.insert(0, control)
    _added(control, "sdtContent").append(document.add_paragraph("Cover")._p)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def _added(parent: Any, name: str) -> Any:
    child = parent.makeelement(qn(f"w:{name}"), {})
    parent.append(child)
    return child


def zipped(parts: dict[str, bytes], of: bytes = b"") -> bytes:
    """The zip `of`, else a new one, with parts replaced or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        if of:
            with zipfile.ZipFile(io.BytesIO(of)) as old:
                for name in old.namelist():
                    if name not in parts:
                        new.writestr(name, old.read(name))
        for name, content in parts.items():
            new.writestr(name, content)
    return out.getvalue()
