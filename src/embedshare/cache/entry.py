"""The form of a cached vector in a shared level: a header, and the row's raw bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

#: Checksum, tokens, and the time at which the entry ends, in Unix seconds; 0 is never.
_HEADER = struct.Struct("<8sId")


class Entry(NamedTuple):
    """A vector as a store holds it."""

    space: bytes
    key: bytes
    value: bytes
    until: float
    """The Unix time in seconds at which it ends; 0 is never."""


class Stored(NamedTuple):
    """Vectors that were found; `positions` are those of their keys among the requested ones."""

    positions: list[int]
    rows: np.ndarray
    """Float32 (len(positions), dimension)"""

    token_counts: list[int]
    left_s: list[float]
    """Seconds that each has left."""


def pack(key: bytes, row: np.ndarray, tokens: int, until: float) -> bytes:
    """The value of a key. The checksum covers the key too: no value passes for another key's."""
    rest = _HEADER.pack(b"", tokens, until)[8:] + row.tobytes()
    return _checksum(key, rest) + rest


def unpack(
    keys: Sequence[bytes], values: Sequence[bytes | None], dimension: int, now: float
) -> tuple[Stored | None, int]:
    """The vectors of at least `dimension` values among `values`, None if there is none; and the number of
    values that are broken or have ended."""
    least, invalid = _HEADER.size + 4 * dimension, 0
    positions: list[int] = []
    rows: list[np.ndarray] = []
    counts, left = [], []
    for position, value in enumerate(values):
        if value is None:
            continue
        checksum, tokens, until = _HEADER.unpack_from(value) if _is_whole(value, least) else (b"", 0, 0.0)
        is_valid = checksum == _checksum(keys[position], value[len(checksum) :])
        if not is_valid or (until and until <= now) or (rows and len(value) != _HEADER.size + rows[0].nbytes):
            invalid += 1
            continue
        positions.append(position)
        rows.append(np.frombuffer(value, np.float32, offset=_HEADER.size))
        counts.append(tokens)
        left.append(until - now if until else float("inf"))
    return (Stored(positions, np.stack(rows), counts, left) if positions else None), invalid


def _is_whole(value: bytes, least: int) -> bool:
    return len(value) >= least and (len(value) - _HEADER.size) % 4 == 0


def _checksum(key: bytes, rest: bytes) -> bytes:
    return blake2b(key + rest, digest_size=8).digest()
