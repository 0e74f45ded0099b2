"""What an index holds at one moment; a change makes another, so whoever reads one reads all of one moment."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from embedshare.vectors.documents import results_of


class Contents(NamedTuple):
    """Documents by growing ids, their float32 embeddings (n, dimension) and metadata; never changed."""

    version: int
    ids: np.ndarray
    embeddings: np.ndarray
    documents: list[dict[str, Any]]

    def with_more(self, ids: np.ndarray, rows: np.ndarray, documents: list[dict[str, Any]]) -> Contents:
        """These and more."""
        return Contents(
            self.version + 1,
            np.concatenate([self.ids, ids]),
            np.concatenate([self.embeddings, rows]),
            self.documents + documents,
        )

    def without(self, numbers: np.ndarray) -> tuple[Contents, list[int]]:
        """These but for the documents of such ids, and the ids that there were."""
        keep = ~np.isin(self.ids, numbers)
        removed: list[int] = self.ids[~keep].tolist()
        if not removed:
            return self, removed
        documents = [entry for entry, kept in zip(self.documents, keep.tolist(), strict=True) if kept]
        return Contents(self.version + 1, self.ids[keep], self.embeddings[keep], documents), removed

    def results(self, ids: list[int], scores: list[float]) -> list[dict[str, Any]]:
        """See documents.results_of."""
        return results_of(ids, scores, self.documents)
