"""A drop-in for another of sentence-transformers' classes, over a client of the same model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedshare.client.shared_model import SharedModel
from embedshare.client.unserved import Unserved


class ModelView(SharedModel):
    """A model seen as one of its kind; `client` is the EmbeddingClient that it asks, `health()` and all.

    A copy or a pickle holds a copy of that client.
    """

    def __init__(self, client: Unserved) -> None:
        super().__init__(client._embedder)
        self.client: Any = client
        self._not_copied = {"_not_copied", *vars(self)} - {"_prompts", "_similarity_fn_name"}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """For copies and pickles: see the class."""
        state = {name: value for name, value in vars(self).items() if name not in self._not_copied}
        return type(self), (self.client,), state

    def close(self) -> None:
        """Close the client."""
        self.client.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ranked(
    scores: np.ndarray, documents: Sequence[Any], top_k: int | None, return_documents: bool
) -> list[dict[str, Any]]:
    """The documents by their scores (n,), best first, as CrossEncoder.rank returns them: `corpus_id`,
    `score`, and `text` with `return_documents`."""
    found: list[dict[str, Any]] = [
        {"corpus_id": number, "score": score} for number, score in enumerate(scores.tolist())
    ]
    if return_documents:
        for one in found:
            one["text"] = documents[one["corpus_id"]]
    return sorted(found, key=lambda one: one["score"], reverse=True)[:top_k]
