"""Reads pdf, docx and html in a separate process, which a file may crash, hang or fill."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec

from embedshare import platforms, sandbox
from embedshare.errors import DocumentUnreadable, MissingDependency, Overloaded
from embedshare.text.documents.pieces import Piece, ReadingLimits

#: The package that reads each kind.
PACKAGES = {"pdf": "pypdfium2", "docx": "docx", "html": "lxml", "json": "ijson"}
#: The part of its memory that a docx may unpack to: its tree takes several times as much.
_UNPACKED = 8
#: Seconds after which a process ends that its parent has left, in addition to the work's own.
_ORPHANED_S = 60.0
_LENGTH = struct.Struct("<I")


class Task(msgspec.Struct):
    """One document: its file, and where its pieces go."""

    kind: str
    source: str
    target: str
    limits: ReadingLimits


class Failure(msgspec.Struct):
    """Why there is no text; both are empty if there is."""

    reason: str = ""
    message: str = ""


def require(kind: str) -> None:
    """Raise MissingDependency if the package for that kind is not installed."""
    try:
        if kind in PACKAGES:
            sandbox.require(PACKAGES[kind])
    except ImportError as error:
        raise MissingDependency(
            f"reading {kind} needs a package that is not installed ({error}): "
            "pip install 'embedshare[sessions]'"
        ) from None


def read(task: Task) -> None:
    """Write the document's pieces to its target. Raises DocumentUnreadable, and Overloaded if no process was
    free in time."""
    seconds = task.limits.seconds
    try:
        answer = _processes().do(msgspec.msgpack.encode(task), time.monotonic() + 2 * seconds, seconds)
        failure = msgspec.msgpack.decode(answer, type=Failure)
    except sandbox.Busy as error:
        raise Overloaded(f"the document was not read: {error}", retry_after_s=seconds) from None
    except sandbox.Late:
        raise DocumentUnreadable(f"reading it took over {seconds:g} s", reason="timeout") from None
    except (sandbox.Lost, msgspec.DecodeError) as error:
        raise DocumentUnreadable(
            f"the {task.kind} is damaged, or {_needs_more(task)}: {error}", reason="damaged"
        ) from None
    if failure.reason:
        raise DocumentUnreadable(failure.message, reason=failure.reason)


def written(target: Path) -> Iterator[Piece]:
    """The pieces that `read` wrote, one at a time."""
    decoder = msgspec.msgpack.Decoder(Piece)
    with target.open("rb") as file:
        while head := file.read(_LENGTH.size):
            yield decoder.decode(file.read(*_LENGTH.unpack(head)))


def _needs_more(task: Task) -> str:
    return f"needs more than {task.limits.memory_bytes:,} bytes of memory"


@cache
def _processes() -> sandbox.Sandbox:
    return sandbox.Sandbox(__name__, at_once=min(4, os.cpu_count() or 1))


def main() -> None:
    """The separate process."""
    sandbox.serve(lambda message: msgspec.msgpack.encode(_answer(msgspec.msgpack.decode(message, type=Task))))


def _answer(task: Task) -> Failure:
    sandbox.end_after(task.limits.seconds + _ORPHANED_S)
    platforms.limit_own_memory(task.limits.memory_bytes)
    try:
        _write(task)
    except DocumentUnreadable as error:
        return Failure(error.fields["reason"], error.message)
    except MemoryError:
        return Failure("too_large", f"the {task.kind} {_needs_more(task)}")
    except Exception as error:  # a parser of untrusted input: whatever it raises, the file is what is wrong
        named = type(error).__name__  # lxml has errors of its own for too little memory
        return Failure("damaged", f"the {task.kind} is damaged, or {_needs_more(task)} ({named})")
    return Failure()


def _write(task: Task) -> None:
    left = task.limits.max_text_chars
    with Path(task.target).open("wb") as file:
        for piece in _pieces(task):
            left -= len(piece.text)
            if left < 0:
                raise too_much_text(task.limits)
            written = msgspec.msgpack.encode(piece)
            file.write(_LENGTH.pack(len(written)) + written)


def _pieces(task: Task) -> Iterator[Piece]:
    path = Path(task.source)
    match task.kind:
        case "pdf":
            from embedshare.text.documents import pdf

            return pdf.read(path)
        case "docx":
            from embedshare.text.documents import word

            return word.read(path, task.limits.memory_bytes // _UNPACKED)
        case _:
            from embedshare.text.documents import html_text

            return html_text.read(path)


def too_much_text(limits: ReadingLimits) -> DocumentUnreadable:
    """The error for a document whose text is too long."""
    return DocumentUnreadable(
        f"the document has more text than the {limits.max_text_chars:,} characters that are allowed",
        reason="too_large",
    )


if __name__ == "__main__":
    main()
