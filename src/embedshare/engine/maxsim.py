"""Late interaction: for each of a query's vectors the largest product with one of a document's. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def of_pairs(
    queries: Sequence[np.ndarray], documents: Sequence[np.ndarray], asked: Sequence[int], mean: bool = False
) -> np.ndarray:
    """MaxSim of each document with the query at its number in `asked`: float32 (documents,).

    `mean`: see `scores`.
    """
    found = np.zeros(len(documents), np.float32)
    order = np.argsort(asked, kind="stable")
    ends = np.searchsorted(np.asarray(asked)[order], np.arange(len(queries) + 1))
    for query, start, end in zip(queries, ends, ends[1:], strict=False):
        places = order[start:end].tolist()
        found[places] = scores(query, [documents[at] for at in places], mean)
    return found


def scores(query: np.ndarray, documents: Sequence[np.ndarray], mean: bool = False) -> np.ndarray:
    """MaxSim of a query with each document: float32 (documents,); 0 where one of both has no vectors.

    `query` (its tokens, dimension), `documents` (tokens, dimension) each. `mean`: divide by the query's
    number of vectors, which sentence-transformers calls meanmaxsim.
    """
    sums = np.zeros(len(documents), np.float32)
    lengths = np.array([len(vectors) for vectors in documents], np.intp)
    present = np.flatnonzero(lengths)
    if not len(present) or not len(query):
        return sums
    # A column for each vector of the documents: those of one document lie together in each row.
    products = query @ np.concatenate([vectors for vectors in documents if len(vectors)]).T
    starts = np.cumsum(lengths[present]) - lengths[present]
    sums[present] = np.maximum.reduceat(products, starts, axis=1).sum(axis=0)
    return sums / np.float32(len(query)) if mean else sums
