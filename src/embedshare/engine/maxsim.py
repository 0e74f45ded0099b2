"""Late interaction: for each of a query's vectors the largest product with one of a document's. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def scores(query: np.ndarray, documents: Sequence[np.ndarray], mean: bool = False) -> np.ndarray:
    """MaxSim of a query with each document: float32 (documents,); 0 where one of both has no vectors.

    `query` (its tokens, dimension), `documents` (tokens, dimension) each. `mean`: divide by the query's
    number of vectors, which sentence-transformers calls meanmaxsim.
    """
    sums = np.zeros(len(documents), np.float32)
    present = [at for at, vectors in enumerate(documents) if len(vectors)]
    if not present or not len(query):
        return sums
    products = np.concatenate([documents[at] for at in present]) @ query.T
    starts = np.cumsum([0, *(len(documents[at]) for at in present[:-1])])
    sums[present] = np.maximum.reduceat(products, starts, axis=0).sum(axis=1)
    return sums / len(query) if mean else sums
