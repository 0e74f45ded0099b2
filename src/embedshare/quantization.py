"""Smaller embeddings, as SentenceTransformer makes them: int8, uint8, binary, ubinary. Pure NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedshare.errors import InvalidInput

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


def quantize(rows: np.ndarray, precision: str, bound: float | None = None) -> np.ndarray:
    """Float32 (n, dimension) in `precision`; (n, dimension / 8) for the binary ones.

    int8 and uint8 divide the range from -bound to bound into 255 steps; values beyond it become its ends.
    Without a bound they take each dimension's range over these rows, of which there must be at least two.
    Raises InvalidInput.
    """
    if precision == "float32":
        return rows
    if not len(rows):
        dimension = rows.shape[1] if precision.endswith("int8") else (rows.shape[1] + 7) // 8
        return np.empty((0, dimension), np.uint8 if precision.startswith("u") else np.int8)
    if precision == "ubinary":
        return np.packbits(rows > 0, axis=-1)
    if precision == "binary":
        return (np.packbits(rows > 0, axis=-1).astype(np.int16) - 128).astype(np.int8)
    if bound is None and len(rows) < 2:
        raise InvalidInput(
            f"{precision} takes its ranges from the embeddings and needs at least two texts; use "
            "binary or ubinary for one"
        )
    low, high = _ranges(rows) if bound is None else (np.float32(-bound), np.float32(bound))
    step = (high - low) / 255
    step = np.where(step == 0, 1, step).astype(np.float32)
    buckets = np.clip(np.floor((rows - low) / step), 0, 255)
    unsigned: np.ndarray = buckets.astype(np.uint8)
    return unsigned if precision == "uint8" else (buckets - 128).astype(np.int8)


def _ranges(rows: np.ndarray) -> tuple[Any, Any]:
    return rows.min(axis=0), rows.max(axis=0)
