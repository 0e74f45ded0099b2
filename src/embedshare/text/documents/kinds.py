"""Which kind of document a file is: by its first bytes, its name and its content type."""

from __future__ import annotations

import codecs

from embedshare.errors import DocumentUnreadable
from embedshare.text import encodings

#: The endings of names, by kind.
_ENDINGS = {
    "txt": "txt text log rst adoc tex org srt vtt",
    "md": "md markdown mdown mkd mdx",
    "html": "html htm xhtml",
    "pdf": "pdf",
    "docx": "docx docm dotx",
    "csv": "csv tsv",
    "json": "json jsonl ndjson geojson ipynb",
    "code": (
        "py pyi js mjs cjs jsx ts tsx java kt kts scala groovy go rs c h cc cpp cxx hh hpp cs fs vb swift m "
        "mm rb php pl pm lua r jl dart ex exs erl hrl hs ml clj cljs lisp el sh bash zsh fish ps1 bat cmd "
        "sql graphql proto css scss sass less vue svelte xml xsd xsl yaml yml toml ini cfg conf properties "
        "env tf dockerfile makefile cmake gradle diff patch asm s f90 pas nim zig sol"
    ),
}
_BY_ENDING = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings.split()}
_BY_TYPE = {
    "text/markdown": "md",
    "text/x-markdown": "md",
    "text/html": "html",
    "application/xhtml+xml": "html",
    "application/pdf": "pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "text/csv": "csv",
    "text/tab-separated-values": "csv",
    "application/json": "json",
    "application/x-ndjson": "json",
    "application/jsonl": "json",
    "application/xml": "code",
    "text/xml": "code",
    "application/yaml": "code",
    "text/plain": "txt",
}
#: First bytes of files that are no text, and what to do with them.
_OTHERS = {
    b"\xd0\xcf\x11\xe0": "a document of an old version of Office; save it as docx or pdf",
    b"PK\x03\x04": "a zip archive or a document of another program; send the files in it, or save it as pdf",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\x1f\x8b": "compressed; unpack it first",
    b"BZh": "compressed; unpack it first",
    b"\xfd7zXZ": "compressed; unpack it first",
    b"(\xb5/\xfd": "compressed; unpack it first",
    b"7z\xbc\xaf": "compressed; unpack it first",
    b"\x7fELF": "a program",
    b"{\\rtf": "rich text; save it as docx or pdf",
}
_PDF_WITHIN = 1024


def kinds() -> tuple[str, ...]:
    """The kinds of documents that can be read."""
    return tuple(_ENDINGS)


def kind_of(filename: str, content_type: str | None, head: bytes) -> str:
    """The kind of a file that begins with `head`, of which a kilobyte or more is best.

    Raises DocumentUnreadable with the reason "unsupported".
    """
    named = _BY_ENDING.get(filename.lower().rpartition("/")[2].rpartition(".")[2])
    typed = _BY_TYPE.get((content_type or "").partition(";")[0].strip().lower())
    kind = named or typed
    if head.lstrip().startswith(b"%PDF-") or (kind is None and b"%PDF-" in head[:_PDF_WITHIN]):
        return "pdf"
    if kind in ("pdf", "docx"):
        return kind  # the reader says what is wrong with one that is none
    if head.startswith(b"PK\x03\x04") and b"word/" in head:
        return "docx"
    _check_text(head)
    return kind or "txt"


def _check_text(head: bytes) -> None:
    other = next((said for magic, said in _OTHERS.items() if head.startswith(magic)), None)
    if other is None and _is_binary(head):
        other = "no text"
    if other is not None:
        raise DocumentUnreadable(
            f"the file is {other}; documents that can be read: {', '.join(kinds())}", reason="unsupported"
        )


def _is_binary(head: bytes) -> bool:
    """Whether there are zero bytes in a text that is neither UTF-16 nor UTF-32."""
    wide = encodings.of_bom(head[:4]) or encodings.of_zeros(head[:4])
    if b"\0" not in head or wide is None:
        return b"\0" in head
    try:
        codecs.getincrementaldecoder(wide)().decode(head)
    except UnicodeDecodeError:
        return True
    return False
