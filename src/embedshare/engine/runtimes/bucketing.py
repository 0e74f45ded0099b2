"""Groups texts of like length into padded batches of a few shapes.

Pure. Padding everything to the longest text of a batch wastes half of it. So texts are sorted by length and
cut where one more launch costs less than the padding that it saves. Little padding is left, attention costs
only each text's own length, and a launch has two dimensions: few enough shapes to capture a graph of each.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import numpy as np

#: The least width of rows in fixed shapes: a device takes as long for narrower ones.
LEAST_WIDTH = 16


class Launch(NamedTuple):
    """Texts computed together, out of a batch sorted by length, the longest first."""

    first: int
    """The first text's position in the sorted batch."""
    texts: int
    rows: int
    """At least `texts`; the results of other rows do not count."""
    width: int
    """Tokens in a row."""
    start: int
    """The start of its integers in the batch's buffer: a length for each row, then the rows."""

    @property
    def end(self) -> int:
        return self.start + self.rows * (self.width + 1)


class Shapes(NamedTuple):
    """The shapes that a device computes well."""

    longest: int
    """The most tokens in a text."""
    launch_tokens: int
    """The most tokens in one launch, padding included; one text may have more."""
    free_tokens: int
    """The padding, in tokens, that costs less than one more launch."""
    fixed: bool
    """Round rows and widths, so that there are few shapes; otherwise launches are as large as their texts."""

    @property
    def least_width(self) -> int:
        """The least width of a launch."""
        return min(LEAST_WIDTH, self.longest) if self.fixed else 1

    def width_of(self, length: int) -> int:
        """The width for a text: of fixed ones 16, 24, 32, … 64, 80, … 128, 160, …, all multiples of 8, as
        kernels like it."""
        step = max(8, _step(length)) if self.fixed else 1
        return max(length, min(max(self.least_width, length + -length % step), self.longest))

    def most_rows(self, width: int) -> int:
        """The most rows in one launch."""
        return max(1, self.launch_tokens // width)

    def shape_for(self, count: int, width: int) -> tuple[int, int]:
        """Rows and width for `count` texts, or for as many of them as make a good shape.

        Small launches cost the same at any size, so they share the fewest shapes.
        """
        if not self.fixed:
            return count, width
        rows, wide = _power_of_two(count), max(width, min(_power_of_two(width), self.longest))
        if rows * wide <= min(2 * self.free_tokens, self.launch_tokens):
            return rows, wide
        step = _step(count)
        rows = count + -count % step
        is_free = (rows - count) * width <= self.free_tokens and rows <= self.most_rows(width)
        return rows if is_free else count - count % step, width


def plan(lengths: list[int], shapes: Shapes) -> list[Launch]:
    """Cut a batch into launches. `lengths` of its texts in tokens, the longest first."""
    width_of = {length: shapes.width_of(length) for length in set(lengths)}
    widths = [width_of[length] for length in lengths]
    launches: list[Launch] = []
    first = start = 0
    while first < len(widths):
        rows, width = shapes.shape_for(_fitting_rows(widths, first, shapes), widths[first])
        launch = Launch(first, min(rows, len(widths) - first), rows, width, start)
        launches.append(launch)
        first, start = first + launch.texts, launch.end
    return launches


def write(sequences: list[list[int]], launches: list[Launch], padding_id: int, buffer: np.ndarray) -> None:
    """Write token ids, sorted as for `plan`, to int32 `buffer`.

    A row without a text holds one token: attention over none is not a number.
    """
    for first, texts, rows, width, start in launches:
        lengths, ids = np.split(buffer[start : start + rows * (width + 1)], [rows])
        ids = ids.reshape(rows, width)
        taken = sequences[first : first + texts]
        counts = np.fromiter(map(len, taken), np.int32, texts)
        lengths[:] = 1
        np.maximum(counts, 1, out=lengths[:texts])
        ids[:] = padding_id
        ids[:texts][np.arange(width) < counts[:, None]] = np.fromiter(
            chain.from_iterable(taken), np.int32, counts.sum()
        )


def _fitting_rows(widths: list[int], first: int, shapes: Shapes) -> int:
    """The number of texts from `first` on that go together: all of its width, and all of the next smaller
    width if they can be padded for free, since nothing less saves a launch."""
    end = min(first + shapes.most_rows(widths[first]), len(widths))
    padding = count = 0
    for place in range(first, end):
        padding += widths[first] - widths[place]
        if padding > shapes.free_tokens:
            break
        if place + 1 == end or widths[place + 1] != widths[place]:
            count = place + 1 - first
    return count


def _step(number: int) -> int:
    """The distance between rounded numbers there: four of them to each doubling."""
    return 1 << max(0, (number - 1).bit_length() - 3)


def _power_of_two(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
