"""Similarity of embeddings: the four measures of SentenceTransformer, in NumPy.

Higher is more alike. Scores are a tensor if torch is installed, as SentenceTransformer's are; else a NumPy
array.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from embedshare.errors import InvalidInput

NAMES = ("cosine", "dot", "euclidean", "manhattan")


def similarity(name: str, first: Any, second: Any) -> Any:
    """Scores of all pairs, float32 (n1, n2), for embeddings of shape (n, dimension) or (dimension,)."""
    a, b = np.atleast_2d(as_array(first)), np.atleast_2d(as_array(second))
    _check_dimensions(a, b)
    if name == "cosine":
        scores = _unit(a) @ _unit(b).T
    elif name == "dot":
        scores = a @ b.T
    elif name == "euclidean":
        scores = (
            np.stack([-np.linalg.norm(b - row, axis=1) for row in a]) if len(a) else np.empty((0, len(b)))
        )
    elif name == "manhattan":
        scores = np.stack([-np.abs(b - row).sum(axis=1) for row in a]) if len(a) else np.empty((0, len(b)))
    else:
        raise unknown(name)
    return as_tensor(scores.astype(np.float32, copy=False))


def similarity_pairwise(name: str, first: Any, second: Any) -> Any:
    """Scores of row i with row i, float32 (n,)."""
    a, b = as_array(first), as_array(second)
    _check_dimensions(a, b)
    if name == "cosine":
        scores = (_unit(a) * _unit(b)).sum(axis=-1)
    elif name == "dot":
        scores = (a * b).sum(axis=-1)
    elif name == "euclidean":
        scores = -np.sqrt(((a - b) ** 2).sum(axis=-1))
    elif name == "manhattan":
        scores = -np.abs(a - b).sum(axis=-1)
    else:
        raise unknown(name)
    return as_tensor(np.asarray(scores, np.float32))


def unknown(name: object, known: Sequence[str] = NAMES) -> InvalidInput:
    """The error for a measure that is not a known one."""
    return InvalidInput(f"similarity_fn_name is {name!r}; allowed: {', '.join(known)}")


def as_array(embeddings: Any) -> np.ndarray:
    """Embeddings as a float32 array, from tensors and lists too."""
    if isinstance(embeddings, list | tuple):
        embeddings = np.stack([as_array(row) for row in embeddings]) if len(embeddings) else np.empty((0, 0))
    elif hasattr(embeddings, "detach"):  # a tensor, without importing torch to ask
        embeddings = embeddings.detach().cpu().float().numpy()
    return np.asarray(embeddings, np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return unit


def _check_dimensions(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise InvalidInput(f"embeddings of {a.shape[-1]} and of {b.shape[-1]} dimensions cannot be compared")


def is_torch_installed() -> bool:
    """Whether a result can be a tensor, as sentence-transformers' is. It imports nothing."""
    return importlib.util.find_spec("torch") is not None


def as_tensor(scores: np.ndarray) -> Any:
    """A tensor of the array where torch is installed, else the array."""
    if not is_torch_installed():
        return scores
    import torch  # the caller asks for a tensor by calling this

    return torch.from_numpy(np.ascontiguousarray(scores))
