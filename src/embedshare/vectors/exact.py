"""Exact search over rows in memory: with FAISS if it is installed, else in NumPy."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import numpy as np

from embedshare.vectors.kinds import higher_is_better

#: Extra candidates that NumPy's quick formula might have ranked a little too low.
_SPARE = 16


def search(rows: np.ndarray, queries: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best rows for each query, best first: float32 scores and int64 positions, both (q, k).

    `rows` (n, dimension) and `queries` (q, dimension) are contiguous float32, of unit length for cosine;
    0 <= k <= n.
    """
    if not k or not len(queries):
        return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    library = faiss()
    if library is None:
        found = [_in_numpy(rows, query, k, metric) for query in queries]
        return np.stack([scores for scores, _ in found]), np.stack([at for _, at in found])
    kind = library.METRIC_INNER_PRODUCT if higher_is_better(metric) else library.METRIC_L2
    scores, positions = library.knn(queries, rows, k, metric=kind)
    return scores, positions


def unit(rows: np.ndarray) -> np.ndarray:
    """The rows at length 1; a row of zeros stays one."""
    scaled: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


@functools.cache
def faiss() -> Any:
    """The library, imported at the first search; None if it is not installed."""
    if importlib.util.find_spec("faiss") is None:
        return None
    return importlib.import_module("faiss")


def _in_numpy(rows: np.ndarray, query: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    better = rows @ query
    if not higher_is_better(metric):
        better = 2 * better - np.einsum("ij,ij->i", rows, rows)
    wanted = min(len(rows), k + _SPARE)
    nearest = np.argpartition(-better, wanted - 1)[:wanted] if wanted < len(rows) else np.arange(len(rows))
    if higher_is_better(metric):
        scores = better[nearest]
        order = np.lexsort((nearest, -scores))[:k]
    else:
        scores = ((rows[nearest] - query) ** 2).sum(axis=1)  # the quick formula loses digits
        order = np.lexsort((nearest, scores))[:k]
    return scores[order].astype(np.float32), nearest[order].astype(np.int64)
