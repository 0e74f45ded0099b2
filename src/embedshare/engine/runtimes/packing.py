"""Packs several texts into one row, kept apart by a block-diagonal attention mask: batches without padding.

Pure. Short queries padded to the longest of a batch are half padding. Packed rows have little, and one of a
few widths, so that a runtime meets prepared shapes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from embedshare.engine.sequences import prompt_tokens

#: Widths of rows, in tokens. Longer texts get rows of a multiple of 64.
WIDTHS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
#: Attention grows with a row's width: at this width it costs a token about as much as everything else. With
#: all-MiniLM-L6-v2 rows of 256 took 1.28 times as long as rows of 64.
_ATTENTION_WIDTH = 600
#: The cost of a change of shape for a runtime, in tokens: 0.6 ms and more in OpenVINO, in which 12 tokens are
#: computed.
_CHANGE = 12


class Layout(NamedTuple):
    """A model's layout of batches."""

    first_position: int = 0
    """The first position's number."""
    one_text_a_row: bool = False
    """Plain padding, for models whose attention knows positions by column."""
    padding_id: int | None = None
    """The token that stands before the first position and takes none, also where a text spells it: RoBERTa's
    <pad>. None: it has a position as others do."""


class Packed(NamedTuple):
    """A batch in the model's form. All int64."""

    input_ids: np.ndarray
    """(rows, width) token ids, 0 without a token."""

    position_ids: np.ndarray
    """(rows, width) the position of each token within its own text."""

    segments: np.ndarray
    """(rows, width) the number of each token's text, -1 for none: tokens see their own text alone."""

    places: np.ndarray
    """(texts, at least the longest's tokens) the places of each text's pooled tokens in the flattened rows;
    -1 after its end, and for a prompt that pooling leaves out."""


def row_width(tokens: int) -> int:
    """The narrowest row that holds this many tokens."""
    return next((width for width in WIDTHS if width >= tokens), -(-tokens // 64) * 64)


def pack(sequences: list[list[int]], layout: Layout, last: tuple[int, int] | None = None) -> Packed:
    """Pack texts into the cheapest rows, longest first, each into the first row with room.

    `last`: the shape (rows, width) of the batch before, taken again if that costs less than another.
    """
    first_position, one_text_a_row, padding_id = layout
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
        position_ids[row, column:end] = (
            positions[: len(ids)] + first_position
            if padding_id is None or padding_id not in ids
            else _without_padding(ids, padding_id, first_position)
        )
        segments[row, column:end] = text
        pooled = slice(prompt_tokens(ids), len(ids))
        places[text, pooled] = positions[pooled] + (row * rows.width + column)
    return Packed(input_ids, position_ids, segments, places)


def _without_padding(ids: list[int], padding_id: int, first_position: int) -> np.ndarray:
    is_counted = np.array(ids) != padding_id
    return np.where(is_counted, np.cumsum(is_counted) + first_position - 1, first_position - 1)


class _Rows(NamedTuple):
    """The place of each text."""

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
    """The cost of a row, in tokens without attention."""
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
