"""Several texts in one row, kept apart by a block-diagonal attention mask: batches without padding.

Pure. Short queries padded to the longest of a batch are half padding. Packed into rows they are little, and
the rows have one of a few widths, so that a runtime meets shapes that it has prepared before.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from embedshare.engine.sequences import prompt_tokens

#: How wide rows are, in tokens. Longer texts get rows of a multiple of 64.
WIDTHS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
#: Attention grows with the width of a row: in one this wide it costs a token about as much as all the rest.
#: (Measured with all-MiniLM-L6-v2: the same tokens in rows of 64 and 256 took 1 and 1.28 of the time.)
_ATTENTION_WIDTH = 600
#: What it costs a runtime to be given another shape than the last time, in tokens. (Measured with OpenVINO:
#: 0.6 ms and more, in which 12 tokens are computed.)
_CHANGE = 12


class Layout(NamedTuple):
    """How a model wants its batches laid out."""

    first_position: int = 0
    """What it counts positions from."""
    one_text_a_row: bool = False
    """Plain padding, for models whose attention knows places by column."""


class Packed(NamedTuple):
    """A batch as the model takes it.

    All int64.
    """

    input_ids: np.ndarray
    """(rows, width) token ids, 0 where nothing is."""

    position_ids: np.ndarray
    """(rows, width) place of each token within its own text."""

    segments: np.ndarray
    """(rows, width) which text a token belongs to, -1 for none: tokens see those of their own text alone."""

    places: np.ndarray
    """(texts, at least the longest's tokens) where the tokens of each text that are pooled stand in the
    flattened rows; -1 after its end, and for a prompt that pooling leaves out."""


def row_width(tokens: int) -> int:
    """The narrowest row that holds this many tokens."""
    return next((width for width in WIDTHS if width >= tokens), -(-tokens // 64) * 64)


def pack(sequences: list[list[int]], layout: Layout, last: tuple[int, int] | None = None) -> Packed:
    """Lay texts out in the rows that cost least, longest first, each in the first row that has room.

    `last`: the shape (rows, width) of the batch before, taken again where that costs less than another.
    """
    first_position, one_text_a_row = layout
    lengths = [len(ids) for ids in sequences]
    longest = max(lengths)
    rows = _one_each(lengths) if one_text_a_row else _cheapest_rows(lengths, last)
    shape = (rows.number, rows.width)
    input_ids = np.zeros(shape, np.int64)
    position_ids = np.full(shape, first_position, np.int64)
    segments = np.full(shape, -1, np.int64)
    places = np.full((len(sequences), row_width(longest)), -1, np.int64)
    positions = np.arange(longest)
    for text, (ids, row, column) in enumerate(zip(sequences, rows.row_of, rows.column_of, strict=True)):
        end = column + len(ids)
        input_ids[row, column:end] = ids
        position_ids[row, column:end] = positions[: len(ids)] + first_position
        segments[row, column:end] = text
        pooled = slice(prompt_tokens(ids), len(ids))
        places[text, pooled] = positions[pooled] + (row * rows.width + column)
    return Packed(input_ids, position_ids, segments, places)


class _Rows(NamedTuple):
    """Where each text stands."""

    width: int
    number: int
    row_of: list[int]
    column_of: list[int]


def _one_each(lengths: list[int]) -> _Rows:
    return _Rows(row_width(max(lengths)), len(lengths), list(range(len(lengths))), [0] * len(lengths))


def _cheapest_rows(lengths: list[int], last: tuple[int, int] | None) -> _Rows:
    """The width at which padding and attention together cost least."""
    total, narrowest = sum(lengths), row_width(max(lengths))
    best, least = None, float("inf")
    if last is not None and last[1] >= narrowest and last[0] * last[1] >= total:
        rows = _fill_rows(lengths, last[1])
        if rows.number <= last[0]:
            best, least = rows._replace(number=last[0]), last[0] * _row_cost(last[1]) - _CHANGE
    for width in (narrowest, *(wider for wider in WIDTHS if wider > narrowest)):
        if -(-total // width) * _row_cost(width) < least:  # else it would not be cheaper with every row full
            rows = _fill_rows(lengths, width)
            if rows.number * _row_cost(width) < least:
                best, least = rows, rows.number * _row_cost(width)
    assert best is not None  # the first width is always tried
    return best


def _row_cost(width: int) -> float:
    """In tokens that pay for no attention."""
    return width * (1 + width / _ATTENTION_WIDTH)


def _fill_rows(lengths: list[int], width: int) -> _Rows:
    """First-fit decreasing."""
    row_of, column_of = [0] * len(lengths), [0] * len(lengths)
    filled: list[int] = []
    for text in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[text]
        row = next((row for row, used in enumerate(filled) if used + length <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        row_of[text], column_of[text] = row, filled[row]
        filled[row] += length
    return _Rows(width, len(filled), row_of, column_of)
