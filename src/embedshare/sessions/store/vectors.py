"""Vectors of length 1, as stores keep and search them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedshare.errors import InvalidInput, NotFinite, ZeroVector


def unit_rows(vectors: Sequence[np.ndarray], dimension: int, chunks: Sequence[int]) -> np.ndarray:
    """The chunks' vectors at length 1, float32 of shape (n, dimension).

    Raises InvalidInput for another shape, NotFinite, ZeroVector, each with the field `chunk`. Engines take
    and count the vectors of the last two, and never find them.
    """
    for vector, chunk in zip(vectors, chunks, strict=True):
        _check_shape(vector, dimension, f"the vector of chunk {chunk}", chunk=chunk)
    rows = np.asarray(vectors, dtype=np.float64).reshape(len(vectors), dimension)
    lengths = np.linalg.norm(rows, axis=1)
    for chunk, row, length in zip(chunks, rows, lengths, strict=True):
        _check_direction(row, length, f"the vector of chunk {chunk}", chunk=chunk)
    scaled: np.ndarray = (rows / lengths[:, None]).astype(np.float32)
    return scaled


def unit(vector: np.ndarray, dimension: int) -> np.ndarray:
    """A query's vector at length 1. Raises InvalidInput, NotFinite, ZeroVector."""
    _check_shape(vector, dimension, "the query's vector")
    row = np.asarray(vector, dtype=np.float64)
    length = np.linalg.norm(row)
    _check_direction(row, length, "the query's vector")
    scaled: np.ndarray = (row / length).astype(np.float32)
    return scaled


def _check_shape(vector: np.ndarray, dimension: int, what: str, **fields: int) -> None:
    if np.shape(vector) != (dimension,):
        raise InvalidInput(f"{what} has the shape {np.shape(vector)}, not ({dimension},)", **fields)


def _check_direction(row: np.ndarray, length: np.floating, what: str, **fields: int) -> None:
    if not np.isfinite(row).all():
        raise NotFinite(f"{what} has a value that is NaN or infinite", **fields)
    if not length:
        raise ZeroVector(f"{what} is zero, which has no direction", **fields)
