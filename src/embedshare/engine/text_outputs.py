"""The outputs of texts as a runtime gives them, one text each, and put together for an answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from embedshare.calls import SparseRows, TokenRows

#: The least length of a vector that is normalised, as in torch.
_LEAST = 1e-12


class TextOutputs(NamedTuple):
    """What a model made of one text."""

    dense: np.ndarray | None = None
    """Float32 (dimension,)."""

    sparse: tuple[np.ndarray, np.ndarray] | None = None
    """Int32 ids of tokens, ascending; float32 weights, none of them 0."""

    multi_vector: np.ndarray | None = None
    """Float32 (tokens, dimension)."""


def ragged(rows: Sequence[object]) -> np.ndarray:
    """An array (n,) of these objects, the form of rows of different sizes."""
    held = np.empty(len(rows), object)
    for at, row in enumerate(rows):
        held[at] = row
    return held


def normalized(rows: np.ndarray) -> np.ndarray:
    """The rows with the length 1."""
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _LEAST)
    return unit


def dense_rows(rows: Iterable[TextOutputs], dimension: int) -> np.ndarray:
    """The vectors of texts: float32 (n, dimension)."""
    vectors = [row.dense for row in rows if row.dense is not None]
    return np.stack(vectors) if vectors else np.empty((0, dimension), np.float32)


def sparse_rows(weights: Sequence[tuple[np.ndarray, np.ndarray]], width: int, most: int | None) -> SparseRows:
    """The weights of texts in one array, of each text the `most` largest; None: all."""
    kept = weights if most is None else [_largest(indices, values, most) for indices, values in weights]
    return SparseRows(
        _offsets(len(indices) for indices, _ in kept),
        _joined([indices for indices, _ in kept], np.empty(0, np.int32)),
        _joined([values for _, values in kept], np.empty(0, np.float32)),
        width,
    )


def token_rows(vectors: Sequence[np.ndarray], dimension: int) -> TokenRows:
    """The vectors of texts' tokens in one array."""
    rows = _joined(vectors, np.empty((0, dimension), np.float32))
    return TokenRows(_offsets(map(len, vectors)), rows)


def _largest(indices: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    if len(values) <= most:
        return indices, values
    kept = np.sort(np.argpartition(values, -most)[-most:])
    return indices[kept], values[kept]


def _offsets(lengths: Iterable[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _joined(parts: Sequence[np.ndarray], empty: np.ndarray) -> np.ndarray:
    return np.concatenate(parts) if parts else empty
