"""Cuts a document into chunks of a model's own tokens, as its text arrives. Each character is tokenized once.

A chunk ends at a heading, else a paragraph, a sentence, a line or a word. The next one repeats its last
tokens, from the beginning of a sentence where there is one, but never anything before a heading.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from embedshare.calls import Token
from embedshare.errors import InvalidInput
from embedshare.text.chunking import SENTENCE_END
from embedshare.text.documents.pieces import Piece

#: The tokens of each text, without special tokens, with positions in that text.
Tokenize = Callable[[list[str]], list[list[Token]]]

#: Characters after which a text that arrives is tokenized: enough for a batch, far below a call's limit.
BATCH_CHARS = 1 << 16
#: Characters of a text that are tokenized as one. Words that are longer are cut, which tokenizers treat as
#: unknown words or as noise anyway.
SEGMENT_CHARS = 1000
#: Characters of a chunk, for each token of its size: four are usual. Runs of spaces and of characters that
#: the model does not read would otherwise make a chunk of any length.
CHARS_PER_TOKEN = 32
#: Characters that a chunk of few tokens may have too.
_LEAST_MAX_CHARS = 4 * SEGMENT_CHARS

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_LINE = re.compile(r"\n")
#: The parts of a chunk that a kind of boundary must leave filled, from the best kind on.
_BOUNDARIES = (_PARAGRAPH, SENTENCE_END, _LINE)
_FILLED_AT_HEADING, _FILLED = 1 / 4, 1 / 2
#: Characters after a sentence's end that its expression looks at.
_LOOK_AHEAD = 4
_ESTIMATED = re.compile(r"[A-Za-z_]{1,4}|\d{1,3}|[À-ҿ]{1,2}|\S")


class Chunk(NamedTuple):
    """A part of a document that fits the model."""

    ids: list[int] | None
    """What the model reads, special tokens included; None for a model that takes no token ids."""

    text: str
    start: int
    """Of its first character in the document's text."""

    end: int
    """After its last character: the document's text from `start` to `end` is `text`."""

    page: int | None
    """Where the chunk begins."""

    heading: str | None


def frame(tokens: Sequence[Token], prompt: str = "") -> tuple[list[int], list[int]]:
    """The token ids before and after those of a text, from all tokens of `prompt` and any text after it."""
    is_text = [stop is not None and stop > len(prompt) for _, _, _, _, stop in tokens]
    if True not in is_text:
        raise InvalidInput("the tokens hold none of a text after the prompt")
    first, last = is_text.index(True), len(tokens) - is_text[::-1].index(True)
    return [token[0] for token in tokens[:first]], [token[0] for token in tokens[last:]]


def estimated_tokens(texts: list[str]) -> list[list[Token]]:
    """Approximate tokens for a model that does not show its own: rather too many than too few."""
    return [
        [(0, match[0], False, match.start(), match.end()) for match in _ESTIMATED.finditer(text)]
        for text in texts
    ]


class TokenChunker:
    """Pieces of one document go in, its chunks come out.

    A chunk has at most `size` tokens, `prefix_ids` before and `suffix_ids` after its own included, and shares
    at most `overlap` of its own with the chunk before. It has every character that is no white space, but for
    long runs of characters that the model does not read.
    Raises InvalidInput for a size and an overlap that leave no room.
    """

    def __init__(
        self,
        tokenize: Tokenize,
        size: int,
        overlap: int,
        prefix_ids: Sequence[int] = (),
        suffix_ids: Sequence[int] = (),
        with_ids: bool = True,
    ) -> None:
        room = size - len(prefix_ids) - len(suffix_ids)
        if room < 1 or not 0 <= overlap < room:
            raise InvalidInput(
                f"chunks of {size:,} tokens that overlap by {overlap:,}: the model's special tokens and its "
                f"prompt take {size - room:,}, and the overlap must be less than the rest"
            )
        self._overlap = overlap
        self._prefix, self._suffix, self._with_ids = list(prefix_ids), list(suffix_ids), with_ids
        self._segments = _Segments()
        self._places = _Places()
        max_chars = max(_LEAST_MAX_CHARS, CHARS_PER_TOKEN * size)
        self._window = _Window(tokenize, room, max_chars, self._places.headings)

    def push(self, piece: Piece) -> Iterator[Chunk]:
        """The chunks that are complete with this piece of the document."""
        self._places.add(piece)
        self._segments.add(piece.text)
        while self._segments.chars >= BATCH_CHARS:
            yield from self._tokenized(self._segments.take())

    def end(self) -> Iterator[Chunk]:
        """The rest of the document's chunks."""
        while self._segments.chars >= BATCH_CHARS:
            yield from self._tokenized(self._segments.take())
        yield from self._tokenized(self._segments.rest())
        yield from self._flushed()

    def _tokenized(self, segments: list[str]) -> Iterator[Chunk]:
        window = self._window
        window.extend(segments)
        while window.is_full:
            yield from self._next()
        if window.unread_chars > window.max_chars:
            yield from self._flushed()
        self._places.forget(window.trim())

    def _flushed(self) -> Iterator[Chunk]:
        while self._window.has_new:
            yield from self._next()
        self._window.clear()

    def _next(self) -> Iterator[Chunk]:
        """The next chunk, unless it is blank; the window then begins with what the one after it repeats."""
        window = self._window
        stop = window.cut()
        start, end = window.span(stop)
        if start < end:
            ids = [*self._prefix, *window.ids[window.first : stop], *self._suffix] if self._with_ids else None
            yield Chunk(ids, window.text_of(start, end), start, end, *self._places.at(start))
        window.advance(stop, self._overlap)


class _Segments:
    """Text that waits to be tokenized, cut before white space, where a tokenizer's words begin anyway."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.chars = 0

    def add(self, text: str) -> None:
        self._parts.append(text)
        self.chars += len(text)

    def take(self) -> list[str]:
        """Segments of about BATCH_CHARS. The rest waits: a word can go on in the next piece."""
        return self._cut(BATCH_CHARS)

    def rest(self) -> list[str]:
        """Everything that waits."""
        segments = self._cut(self.chars)
        left = self._parts.pop()
        self.chars = 0
        return [*segments, left] if left else segments

    def _cut(self, end: int) -> list[str]:
        text = "".join(self._parts)
        segments, at = [], 0
        while end - at > SEGMENT_CHARS:
            stop = _segment_end(text, at)
            segments.append(text[at:stop])
            at = stop
        self._parts = [text[at:]]
        self.chars = len(text) - at
        return segments


def _segment_end(text: str, start: int) -> int:
    """Before the last white space of SEGMENT_CHARS, else after the last character that is of no word."""
    limit, half = start + SEGMENT_CHARS, start + SEGMENT_CHARS // 2
    space = max(text.rfind(" ", start + 1, limit), text.rfind("\n", start + 1, limit))
    while space > half and text[space - 1].isspace():
        space -= 1
    if space > start:
        return space
    return next((stop for stop in range(limit, half, -1) if not text[stop - 1].isalnum()), limit)


class _Places:
    """Pages and headings by their positions in the document."""

    def __init__(self) -> None:
        self._offset = 0
        self._starts: list[int] = []
        self._places: list[tuple[int | None, str | None]] = []
        #: The positions at which a heading begins.
        self.headings: list[int] = []

    def add(self, piece: Piece) -> None:
        before = self._places[-1] if self._places else None
        if before != (piece.page, piece.heading):
            if before is not None and before[1] != piece.heading:
                self.headings.append(self._offset)
            self._starts.append(self._offset)
            self._places.append((piece.page, piece.heading))
        self._offset += len(piece.text)

    def at(self, position: int) -> tuple[int | None, str | None]:
        return self._places[bisect_right(self._starts, position) - 1]

    def forget(self, before: int) -> None:
        """Drop what is over before that position."""
        del self.headings[: bisect_left(self.headings, before)]
        over = bisect_right(self._starts, before) - 1
        if over > 0:
            del self._starts[:over], self._places[:over]


class _Window:
    """The tokens of which chunks are cut now, with their positions in the document, and their text."""

    def __init__(self, tokenize: Tokenize, room: int, max_chars: int, headings: list[int]) -> None:
        self._tokenize, self._room, self.max_chars = tokenize, room, max_chars
        self._headings = headings
        self.ids: list[int] = []
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._text, self._text_start = "", 0
        #: The next chunk's first token.
        self.first = 0
        #: The first token that no chunk has yet.
        self._new = 0

    def extend(self, segments: list[str]) -> None:
        at = self._end
        starts: list[int] = []
        stops: list[int] = []
        for segment, tokens in zip(segments, self._tokenize(segments), strict=True):
            self.ids += [one for one, _, _, start, _ in tokens if start is not None]
            starts += [at + start for _, _, _, start, _ in tokens if start is not None]
            stops += [at + stop for _, _, _, _, stop in tokens if stop is not None]
            at += len(segment)
        # Normalizers that change the order of characters give positions that go back: bisect needs an order.
        self._starts += accumulate(starts, max)
        self._stops += accumulate(stops, max)
        self._text += "".join(segments)

    @property
    def _end(self) -> int:
        return self._text_start + len(self._text)

    @property
    def is_full(self) -> bool:
        """Whether a chunk is complete: a token is known that it has no room for."""
        return self.has_new and self._last() < len(self.ids)

    @property
    def has_new(self) -> bool:
        """Whether there are tokens that no chunk has yet."""
        return self._new < len(self.ids)

    @property
    def unread_chars(self) -> int:
        """Characters after the last token."""
        return self._end - (self._stops[-1] if self._stops else self._text_start)

    def _last(self) -> int:
        """The end of the longest chunk that can begin with the first token, and has a new one."""
        return max(self._new + 1, self._within_limits())

    def _within_limits(self) -> int:
        by_chars = bisect_right(self._stops, self._starts[self.first] + self.max_chars)
        return min(self.first + self._room, by_chars, len(self.ids))

    def cut(self) -> int:
        """Where the next chunk ends: the number of the token after it."""
        last = self._last()
        if last == len(self.ids):
            return last
        found = self._heading(self._filled(_FILLED_AT_HEADING, last), last)
        for boundary in _BOUNDARIES:
            if found is None:
                found = max(self._after(boundary, self._filled(_FILLED, last), last), default=None)
        return found or self._between(range(last, self._new, -1)) or last

    def _filled(self, part: float, last: int) -> int:
        return max(self._new + 1, self.first + int((last - self.first) * part))

    def _heading(self, least: int, most: int) -> int | None:
        """The last token in this range that begins a heading's part of the document."""
        number = bisect_right(self._headings, self._starts[most]) - 1
        found = bisect_left(self._starts, self._headings[number]) if number >= 0 else -1
        return found if least <= found <= most and self._is_clean(found) else None

    def _after(self, boundary: re.Pattern[str], least: int, most: int) -> Iterator[int]:
        """The tokens in this range that follow such a boundary.

        Some tokenizers count white space to the token after it, so it is looked for before the white space.
        """
        if least > most:
            return
        offset, limit = self._text_start, self._starts[most]
        region = self._stops[least - 1] - offset, limit - offset + _LOOK_AHEAD
        for match in boundary.finditer(self._text, *region):
            at = offset + match.start() + len(match[0].rstrip())
            number = bisect_left(self._starts, at)
            if least <= number <= most and self._is_clean(number):
                yield number

    def _is_clean(self, number: int) -> bool:
        """Whether no character belongs to the tokens before and after: an emoji can have four of its own."""
        return self._stops[number - 1] <= self._starts[number]

    def _begins_word(self, number: int) -> bool:
        before, start = self._stops[number - 1], self._starts[number]
        if before != start:
            return before < start
        return self.text_of(start, start + 1).isspace() or self.text_of(before - 1, before).isspace()

    def _between(self, numbers: range) -> int | None:
        """The first of these tokens that begins a word, else a character."""
        word = next(filter(self._begins_word, numbers), None)
        return word if word is not None else next(filter(self._is_clean, numbers), None)

    def span(self, stop: int) -> tuple[int, int]:
        """The positions of the chunk whose tokens end before `stop`.

        Characters that the model does not read belong to the chunk before them.
        """
        start = self._starts[self.first] if self.first else self._text_start
        end = self._starts[stop] if stop < len(self.ids) else self._end
        text = self.text_of(start, max(self._stops[stop - 1], min(end, start + self.max_chars)))
        return start + len(text) - len(text.lstrip()), start + len(text.rstrip())

    def text_of(self, start: int, end: int) -> str:
        """The document's text between two positions."""
        return self._text[start - self._text_start : end - self._text_start]

    def advance(self, stop: int, overlap: int) -> None:
        """Let the next chunk begin up to `overlap` tokens before `stop`, at a good place."""
        self._new, first = stop, self.first
        self.first = stop
        if stop < len(self.ids) and overlap:
            self.first = self._repeated(max(stop - overlap, first + 1), stop)
            if self._within_limits() <= stop:  # what is repeated has too many characters
                self.first = stop

    def _repeated(self, earliest: int, stop: int) -> int:
        heading = self._heading(earliest, stop)
        if heading is not None:
            return heading
        sentence = next(self._after(SENTENCE_END, earliest, stop), stop)
        return sentence if sentence < stop else self._between(range(earliest, stop)) or stop

    def trim(self) -> int:
        """Drop tokens and text that no further chunk has. The position at which the rest begins."""
        if self.first:
            start = self._starts[self.first]
            self._text, self._text_start = self.text_of(start, self._end), start
            for numbers in (self.ids, self._starts, self._stops):
                del numbers[: self.first]
            self._new, self.first = self._new - self.first, 0
        return self._text_start

    def clear(self) -> None:
        """Drop all tokens and text."""
        self._text_start, self._text = self._end, ""
        self.ids, self._starts, self._stops = [], [], []
        self.first = self._new = 0
