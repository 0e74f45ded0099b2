"""Several texts in one row, kept apart by a block-diagonal attention mask: batches without padding.

Pure. Short queries padded to the longest of a batch are half padding. Packed into rows they are none,
whatever their mix, and there is one shape to grow (tokens) instead of two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: Rows are filled up to a multiple of this many tokens, so that a runtime sees few shapes.
ROW_MULTIPLE = 16
#: Rows are no longer than this, or than the longest text: attention costs the square of a row's length.
ROW_TOKENS = 256


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
    """(texts, longest) where each text's tokens stand in the flattened rows, -1 after its end."""


def pack(sequences: list[list[int]], layout: Layout) -> Packed:
    """Lay texts out in rows, longest first, each in the first row that has room."""
    first_position, one_text_a_row = layout
    lengths = [len(ids) for ids in sequences]
    longest = max(lengths)
    row_of, column_of, filled = _fill_rows(lengths, 0 if one_text_a_row else max(longest, ROW_TOKENS))
    width = -(-max(filled) // ROW_MULTIPLE) * ROW_MULTIPLE
    input_ids = np.zeros((len(filled), width), np.int64)
    position_ids = np.full((len(filled), width), first_position, np.int64)
    segments = np.full((len(filled), width), -1, np.int64)
    places = np.full((len(sequences), longest), -1, np.int64)
    positions = np.arange(longest)
    for text, (ids, row, column) in enumerate(zip(sequences, row_of, column_of, strict=True)):
        end = column + len(ids)
        input_ids[row, column:end] = ids
        position_ids[row, column:end] = positions[: len(ids)] + first_position
        segments[row, column:end] = text
        places[text, : len(ids)] = positions[: len(ids)] + (row * width + column)
    return Packed(input_ids, position_ids, segments, places)


def _fill_rows(lengths: list[int], capacity: int) -> tuple[list[int], list[int], list[int]]:
    """First-fit decreasing: each text's row and column, and how far each row is filled."""
    row_of, column_of = [0] * len(lengths), [0] * len(lengths)
    filled: list[int] = []
    for text in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[text]
        row = next((row for row, used in enumerate(filled) if used + length <= capacity), len(filled))
        if row == len(filled):
            filled.append(0)
        row_of[text], column_of[text] = row, filled[row]
        filled[row] += length
    return row_of, column_of, filled
