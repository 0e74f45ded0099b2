"""Similarity of sparse vectors: the four measures of SparseEncoder in NumPy, without dense matrices. Pure."""

from __future__ import annotations

import numpy as np

from embedshare.calls import SparseRows
from embedshare.errors import InvalidInput


def similarity(name: str, first: SparseRows, second: SparseRows) -> np.ndarray:
    """Scores of all pairs, float32 (n1, n2); higher is more alike."""
    _check_widths(first, second)
    scores = np.empty((_count(first), _count(second)), np.float32)
    for number in range(len(scores)):
        scores[number] = _scores(name, *_row(first, number), second)
    return scores


def similarity_pairwise(name: str, first: SparseRows, second: SparseRows) -> np.ndarray:
    """Scores of row i with row i, float32 (n,)."""
    _check_widths(first, second)
    if _count(first) != _count(second):
        raise InvalidInput(f"{_count(first)} vectors cannot be compared pairwise with {_count(second)}")
    scores = np.empty(_count(first), np.float32)
    for number in range(len(scores)):
        scores[number] = _scores(name, *_row(first, number), _one(second, number))[0]
    return scores


def _scores(name: str, indices: np.ndarray, values: np.ndarray, rows: SparseRows) -> np.ndarray:
    """The scores of one vector with each row, (n,)."""
    dense = np.zeros(rows.width)
    dense[indices] = values
    met = dense[rows.indices]  # the vector's weights where the rows have some
    scores: np.ndarray = _sums(met * rows.values, rows)
    if name == "dot":
        return scores
    if name == "manhattan":
        missing = np.abs(values).sum() - _sums(np.abs(met), rows)
        scores = -(missing + _sums(np.abs(met - rows.values), rows))
        return scores
    square, squares = (dense**2).sum(), _sums(rows.values.astype(float) ** 2, rows)
    if name == "cosine":
        scores = scores / (np.maximum(np.sqrt(square), 1e-12) * np.maximum(np.sqrt(squares), 1e-12))
    else:
        scores = -np.sqrt(np.maximum(square - 2 * scores + squares, 0))
    return scores


def _sums(items: np.ndarray, rows: SparseRows) -> np.ndarray:
    """The sum of each row's items."""
    numbers = np.repeat(np.arange(_count(rows)), np.diff(rows.offsets))
    return np.bincount(numbers, items, _count(rows))


def _row(rows: SparseRows, number: int) -> tuple[np.ndarray, np.ndarray]:
    held = slice(rows.offsets[number], rows.offsets[number + 1])
    return rows.indices[held], rows.values[held]


def _one(rows: SparseRows, number: int) -> SparseRows:
    indices, values = _row(rows, number)
    return SparseRows(np.array([0, len(indices)]), indices, values, rows.width)


def _count(rows: SparseRows) -> int:
    return len(rows.offsets) - 1


def _check_widths(first: SparseRows, second: SparseRows) -> None:
    if first.width != second.width:
        raise InvalidInput(
            f"sparse vectors of {first.width} and of {second.width} dimensions cannot be compared"
        )
