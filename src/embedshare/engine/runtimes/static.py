"""StaticEmbedding: the mean of one row for each token of the vocabulary, in NumPy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_ROWS = "rows.npy"


class StaticRuntime:
    """Looks rows up. `normalize`: the model has a Normalize module."""

    name = "static"
    device = "cpu"
    dtype = "float32"
    max_batches_per_lane = 2
    max_batches = 3
    interactive_budget = 4096
    bulk_budget = 1 << 16
    packs = True
    padding_tokens = 0

    def __init__(self, table: np.ndarray, normalize: bool) -> None:
        self._table = table
        self._normalize = normalize

    @classmethod
    def read(cls, folder: Path, normalize: bool) -> StaticRuntime:
        """Read the files that `write` has written. Raises OSError, ValueError."""
        return cls(np.load(folder / _ROWS, allow_pickle=False), normalize)

    def write(self, folder: Path) -> None:
        """Write the rows to `folder`."""
        np.save(folder / _ROWS, self._table)

    def settle(self) -> None:
        """See base.Runtime."""

    def close(self) -> None:
        """See base.Runtime."""

    def run(self, sequences: list[list[int]]) -> np.ndarray:
        """See base.Runtime. A text without tokens is zeros."""
        rows = np.zeros((len(sequences), self._table.shape[1]), np.float32)
        for row, ids in zip(rows, sequences, strict=True):
            if ids:
                np.mean(self._table[ids], axis=0, out=row)
        if self._normalize:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows
