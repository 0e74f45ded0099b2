"""Cuts a text into passages: whole sentences where possible, some overlap, counted in the model's tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

#: The number of tokens of each text.
Count = Callable[[list[str]], list[int]]

#: About the 800 characters that an answer shows, and half of the default model's longest sequence.
MAX_TOKENS = 160
#: The end of a passage that the next one repeats: an answer may cross the cut.
OVERLAP_TOKENS = 32

SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9À-ÞΑ-ΩЀ-Я])|(?<=[。！？])")


class _Piece(msgspec.Struct):
    """A sentence, or a part of one that is too long."""

    text: str
    tokens: int
    joint: str
    """The separator before it: a space or a new line."""


def cut(
    texts: Sequence[str],
    count: Count,
    max_chars: int,
    max_tokens: int = MAX_TOKENS,
    overlap_tokens: int = OVERLAP_TOKENS,
) -> list[list[str]]:
    """The passages of each text, each of at most `max_tokens` and `max_chars` characters.

    `count` is called with the sentences of all texts at once. Token counts of sentences are added up, which
    is exact for models that split at spaces first.
    """
    pieces = [sentences(text) for text in texts]
    _count([piece for own in pieces for piece in own], count)
    return [_packed(_fitting(own, count, max_tokens, max_chars), max_tokens, overlap_tokens, max_chars)
            for own in pieces]  # fmt: skip


def estimate(texts: list[str]) -> list[int]:
    """The approximate number of tokens without a model: four characters each in English."""
    return [len(text.encode("utf-8", "replace")) // 4 + 1 for text in texts]


def sentences(text: str) -> list[_Piece]:
    """The sentences of a text; a line's end always ends one."""
    found = []
    for line in text.splitlines():
        joint = "\n"
        for sentence in filter(None, map(str.strip, SENTENCE_END.split(line))):
            found.append(_Piece(sentence, 0, joint))
            joint = " "
    return found


def _count(pieces: list[_Piece], count: Count) -> None:
    if pieces:
        for piece, tokens in zip(pieces, count([piece.text for piece in pieces]), strict=True):
            piece.tokens = tokens


def _fitting(pieces: list[_Piece], count: Count, max_tokens: int, max_chars: int) -> list[_Piece]:
    """The pieces, with too long ones halved until they fit."""
    while True:
        fitting: list[_Piece] = []
        halves: list[_Piece] = []
        for piece in pieces:
            too_long = piece.tokens > max_tokens or len(piece.text) > max_chars
            if not too_long or len(piece.text) < 2:
                fitting.append(piece)
                continue
            two = _halved(piece)
            fitting += two
            halves += two
        if not halves:
            return fitting
        _count(halves, count)
        pieces = fitting


def _halved(piece: _Piece) -> list[_Piece]:
    """At the space next to the middle, else in the middle."""
    text, middle = piece.text, len(piece.text) // 2
    before, after = text.rfind(" ", 0, middle + 1), text.find(" ", middle)
    at = min((at for at in (before, after) if at > 0), key=lambda at: abs(at - middle), default=middle)
    joint = " " if text[at] == " " else ""
    return [_Piece(text[:at].rstrip(), 0, piece.joint), _Piece(text[at:].lstrip(), 0, joint)]


def _packed(pieces: list[_Piece], max_tokens: int, overlap_tokens: int, max_chars: int) -> list[str]:
    passages: list[str] = []
    held: list[_Piece] = []
    tokens, chars = 0, 0
    for piece in pieces:
        if held and (tokens + piece.tokens > max_tokens or chars + _length(piece) > max_chars):
            passages.append(_joined(held))
            held = _tail(held, min(overlap_tokens, max_tokens - piece.tokens))
            tokens, chars = sum(one.tokens for one in held), sum(map(_length, held))
            while held and chars + _length(piece) > max_chars:
                first = held.pop(0)
                tokens, chars = tokens - first.tokens, chars - _length(first)
        held.append(piece)
        tokens, chars = tokens + piece.tokens, chars + _length(piece)
    return [*passages, _joined(held)] if held else passages


def _length(piece: _Piece) -> int:
    return len(piece.joint) + len(piece.text)


def _tail(pieces: list[_Piece], most_tokens: int) -> list[_Piece]:
    """The last pieces, of together at most this many tokens, never all."""
    kept: list[_Piece] = []
    for piece in reversed(pieces[1:]):
        if sum(one.tokens for one in kept) + piece.tokens > most_tokens:
            break
        kept.insert(0, piece)
    return kept


def _joined(pieces: list[_Piece]) -> str:
    return "".join((piece.joint if number else "") + piece.text for number, piece in enumerate(pieces))
