"""A part of a job's result: the vectors and token counts of some lines, or their errors, in one file.

The file: the header's length (4 bytes), the header as JSON, the token counts (int32), the vectors' values
(float32), all little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from embedshare.errors import JobsNotKept
from embedshare.jobs.spec import Failure

_LENGTH = struct.Struct("<I")


class Line(NamedTuple):
    """A line's result: float32 rows (inputs, dimension) and the token count of each, or a failure."""

    rows: np.ndarray
    tokens: np.ndarray
    failure: Failure | None = None


class Part(NamedTuple):
    """The results of some lines in their order, and the model that made them (empty: none was asked)."""

    lines: list[Line]
    model_name: str
    identity: str


#: The rows of a line that failed.
NO_ROWS, NO_TOKENS = np.empty((0, 0), np.float32), np.empty(0, np.int32)


class _Header(msgspec.Struct):
    counts: list[int]
    dimensions: list[int]
    failures: dict[int, Failure]
    model_name: str
    identity: str


def encoded(part: Part) -> Iterator[bytes]:
    """The pieces of a part's file."""
    header = msgspec.json.encode(
        _Header(
            [len(line.rows) for line in part.lines],
            [line.rows.shape[1] for line in part.lines],
            {number: line.failure for number, line in enumerate(part.lines) if line.failure is not None},
            part.model_name,
            part.identity,
        )
    )
    yield _LENGTH.pack(len(header))
    yield header
    for line in part.lines:
        yield line.tokens.astype("<i4").tobytes()
    for line in part.lines:
        yield line.rows.astype("<f4").tobytes()


def read(path: Path) -> Part:
    """The part in a file. Raises JobsNotKept for a damaged one, and OSError."""
    content = path.read_bytes()
    try:
        return _decoded(content)
    except (struct.error, msgspec.MsgspecError, ValueError):
        raise JobsNotKept(f"{path.name} of a job is damaged: delete the job and create it again") from None


@lru_cache(maxsize=1 << 16)  # a part's file never changes, and its path is used once
def failed_lines(path: Path) -> int:
    """The number of lines with an error in a part's file; reads the header alone. Raises OSError."""
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        return len(msgspec.json.decode(file.read(length), type=_Header).failures)


def _decoded(content: bytes) -> Part:
    (length,) = _LENGTH.unpack_from(content)
    begin = _LENGTH.size + length
    header = msgspec.json.decode(content[_LENGTH.size : begin], type=_Header)
    vectors = sum(header.counts)
    tokens = np.frombuffer(content, "<i4", vectors, begin)
    values = np.frombuffer(content, "<f4", -1, begin + 4 * vectors)
    sizes = [count * dimension for count, dimension in zip(header.counts, header.dimensions, strict=True)]
    if len(values) != sum(sizes):
        raise ValueError("another length than the header's")
    lines, vector, value = [], 0, 0
    for number, (count, dimension) in enumerate(zip(header.counts, header.dimensions, strict=True)):
        rows = values[value : value + count * dimension].reshape(count, dimension)
        lines.append(Line(rows, tokens[vector : vector + count], header.failures.get(number)))
        vector, value = vector + count, value + count * dimension
    return Part(lines, header.model_name, header.identity)
