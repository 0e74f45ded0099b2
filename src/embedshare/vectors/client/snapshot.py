"""An index's contents at one moment; a change makes a new snapshot, so a reader sees a single moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from embedshare.errors import ModelMismatch
from embedshare.vectors import exact
from embedshare.vectors.documents import results_of


@dataclass(frozen=True)
class IndexSnapshot:
    """Documents by growing ids, their float32 embeddings (n, dimension) and metadata; never changed."""

    version: int
    ids: np.ndarray
    embeddings: np.ndarray
    documents: list[dict[str, Any]]

    def rows(self, metric: str) -> np.ndarray:
        """The embeddings in the form of a local search: contiguous, at length 1 for cosine."""
        if metric != "cosine":
            return np.ascontiguousarray(self.embeddings, np.float32)
        if "unit" not in self.__dict__:  # cached_property has a lock, which a fork may inherit closed
            self.__dict__["unit"] = exact.unit(np.ascontiguousarray(self.embeddings, np.float32))
        unit: np.ndarray = self.__dict__["unit"]
        return unit

    def with_more(self, ids: np.ndarray, rows: np.ndarray, documents: list[dict[str, Any]]) -> IndexSnapshot:
        """A snapshot with more documents."""
        return IndexSnapshot(
            self.version + 1,
            np.concatenate([self.ids, ids]),
            np.concatenate([self.embeddings, rows]),
            self.documents + documents,
        )

    def without(self, numbers: np.ndarray) -> tuple[IndexSnapshot, list[int]]:
        """A snapshot without the documents of these ids, and the ids that existed."""
        keep = ~np.isin(self.ids, numbers)
        removed: list[int] = self.ids[~keep].tolist()
        if not removed:
            return self, removed
        documents = [entry for entry, kept in zip(self.documents, keep.tolist(), strict=True) if kept]
        return IndexSnapshot(self.version + 1, self.ids[keep], self.embeddings[keep], documents), removed

    def results(self, ids: list[int], scores: list[float]) -> list[dict[str, Any]]:
        """See documents.results_of."""
        return results_of(ids, scores, self.documents)


def of_another_model(identity: str, found: str) -> ModelMismatch:
    """The error for an index of the model `identity` if the model `found` answers."""
    return ModelMismatch(
        f"the index holds vectors of another model ({identity[:12]}) than the served one "
        f"({found[:12]}); embed its documents again: build_vector_index(docs, urls)",
        expected=identity,
        found=found,
    )
