"""The lines of a body that is read piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from embedshare.errors import TooLarge

#: Bytes that are read at once.
_PIECE_BYTES = 1 << 20


def lines(read: Callable[[int], bytes], longest: int) -> Iterator[bytes]:
    """The lines without their ends (LF or CRLF), of at most `longest` bytes; what follows the last end is a
    line unless it is empty.

    `read(n)` gives up to n bytes, none at the end. Raises TooLarge, with the line's number from 1.
    """
    number, rest = 1, b""
    while piece := read(_PIECE_BYTES):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield _checked(line, number, longest)
            number += 1
        _checked(rest, number, longest)
    if rest:
        yield _checked(rest, number, longest)


def _checked(line: bytes, number: int, longest: int) -> bytes:
    line = line.removesuffix(b"\r")
    if len(line) > longest:
        raise TooLarge(
            f"line {number:,} is longer than {longest:,} bytes, which EMBEDDING_MAX_MESSAGE_BYTES allows"
        )
    return line
