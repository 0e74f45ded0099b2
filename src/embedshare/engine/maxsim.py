"""Late interaction: for each of a query's vectors the largest product with one of a document's. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

#: Products of a query's vectors with documents' that are held at once: 64 MB of them.
_PRODUCTS = 1 << 24


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
    present = [number for number, vectors in enumerate(documents) if len(vectors)]
    if not len(query):
        return sums
    for numbers in _runs(present, [len(documents[number]) for number in present], _PRODUCTS // len(query)):
        sums[numbers] = _sums(query, [documents[number] for number in numbers])
    return sums / np.float32(len(query)) if mean else sums


def _sums(query: np.ndarray, documents: Sequence[np.ndarray]) -> np.ndarray:
    """MaxSim of a query with each of some documents, all of which have vectors."""
    lengths = np.array([len(vectors) for vectors in documents])
    # A column for each vector of the documents: those of one document lie together in each row.
    products = query @ np.concatenate(documents).T
    sums: np.ndarray = np.maximum.reduceat(products, np.cumsum(lengths) - lengths, axis=1).sum(axis=0)
    return sums


def _runs(numbers: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """`numbers` in runs of at most `most` tokens together; a longer document goes alone."""
    run: list[int] = []
    tokens = 0
    for number, length in zip(numbers, lengths, strict=True):
        if run and tokens + length > most:
            yield run
            run, tokens = [], 0
        run.append(number)
        tokens += length
    if run:
        yield run
