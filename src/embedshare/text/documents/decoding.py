"""Decodes a text file as its bytes arrive: its encoding is decided where it is first needed."""

from __future__ import annotations

import codecs
import io

from embedshare.errors import DocumentUnreadable
from embedshare.text import encodings

#: Bytes from the first one beyond ASCII on by which the encoding is decided.
DECIDED_BY = 1 << 16
#: Valid characters beyond ASCII for each invalid byte that make a damaged UTF-8 of a text.
_VALID_PER_INVALID = 8


class TextDecoder:
    """Bytes go in, text comes out, with \\n at the end of each line.

    A byte that the encoding does not allow is an error with its offset, not a replacement: it shows that the
    encoding is another one, or that the file is damaged, and an index of replaced letters finds nothing.
    Raises DocumentUnreadable.
    """

    def __init__(self) -> None:
        self._decoder: codecs.IncrementalDecoder | None = None
        self._encoding = "utf-8"
        self._held = b""
        self._consumed = 0
        self._newlines = io.IncrementalNewlineDecoder(None, translate=True)

    def feed(self, data: bytes) -> str:
        """The text that these bytes complete."""
        return self._newlines.decode(self._text(data, final=False))

    def end(self) -> str:
        """The rest of the text."""
        return self._newlines.decode(self._text(b"", final=True), final=True)

    def _text(self, data: bytes, final: bool) -> str:
        if self._decoder is not None:
            return self._decoded(data, final)
        self._held += data
        ascii_text = self._leading_ascii()
        if not self._held or (len(self._held) < DECIDED_BY and not final):
            return ascii_text
        held, self._held = self._held, b""
        self._encoding = self._decide(held, final)
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        return ascii_text + self._decoded(held, final)

    def _leading_ascii(self) -> str:
        """What is the same in all encodings but UTF-16 and UTF-32, which show by their first bytes."""
        held = self._held
        if not self._consumed and (len(held) < 4 or not held[:4].isascii() or b"\0" in held[:4]):
            return ""
        end = len(held) - len(held.lstrip(_ASCII))
        self._consumed += end
        self._held = held[end:]
        return held[:end].decode("ascii")

    def _decide(self, held: bytes, final: bool) -> str:
        if not self._consumed:
            known = encodings.of_bom(held[:4]) or encodings.of_zeros(held[:4])
            if known is not None:
                return known
        try:
            codecs.getincrementaldecoder("utf-8")().decode(held, final)
        except UnicodeDecodeError:
            return self._not_plain_utf8(held)
        return "utf-8"

    def _not_plain_utf8(self, held: bytes) -> str:
        text = held.decode("utf-8", "replace")
        invalid = text.count("\ufffd")
        if sum(char > "\x7f" for char in text) - invalid >= _VALID_PER_INVALID * invalid:
            return "utf-8"
        guessed = encodings.guess(held)
        if guessed is None:
            raise DocumentUnreadable(
                f"the file is no text in a known encoding: byte {self._consumed:,} is not valid UTF-8, "
                "and no other encoding fits; save it as UTF-8",
                reason="damaged",
            )
        return guessed

    def _decoded(self, data: bytes, final: bool) -> str:
        assert self._decoder is not None
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            offset = self._consumed - pending + error.start
            raise DocumentUnreadable(
                f"the file is damaged, or in several encodings: it begins as {self._encoding}, and byte "
                f"{offset:,} is not valid in it; save it as UTF-8",
                reason="damaged",
            ) from None
        self._consumed += len(data)
        return text


_ASCII = bytes(range(128))
