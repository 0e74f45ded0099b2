"""Scores by late interaction, in groups of documents: the vectors of a long list's tokens are never held at
once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from embedshare.calls import Timings
from embedshare.engine import maxsim

#: Bytes of the vectors that one call holds; those of a single document and its query may take more.
HELD_BYTES = 64 << 20

#: Rows of TextOutputs for sequences, and their times.
Compute = Callable[[list[Any]], tuple[np.ndarray, Timings]]


def scores(
    queries: Sequence[Any],
    documents: Sequence[Any],
    asked: Sequence[int],
    compute: Compute,
    dimension: int,
    mean: bool,
) -> tuple[np.ndarray, Timings]:
    """MaxSim of each document with the query at its number in `asked`: float32 (documents,), and the times.

    `queries` and `documents` are sequences, of whose tokens `compute` makes vectors (tokens, dimension).
    `mean`: see maxsim.scores. A query of several groups in a row is computed once.
    """
    found = np.zeros(len(documents), np.float32)
    known: dict[int, np.ndarray] = {}
    times = [Timings()]
    for group in _groups(list(map(len, queries)), list(map(len, documents)), asked, dimension):
        wanted = dict.fromkeys(asked[place] for place in group)
        known = {number: known[number] for number in wanted if number in known}
        new = [number for number in wanted if number not in known]
        rows, timings = compute([*(queries[number] for number in new), *(documents[at] for at in group)])
        vectors = [row.multi_vector for row in rows]
        known |= dict(zip(new, vectors, strict=False))
        order = {number: at for at, number in enumerate(wanted)}
        found[group.start : group.stop] = maxsim.of_pairs(
            [known[number] for number in wanted],
            vectors[len(new) :],
            [order[asked[place]] for place in group],
            mean,
        )
        times.append(timings)
    return found, Timings(*map(sum, zip(*(one.stages for one in times), strict=True)))


def _groups(
    queries: Sequence[int], documents: Sequence[int], asked: Sequence[int], dimension: int
) -> Iterator[range]:
    """Runs of documents that with their queries have at most HELD_BYTES of vectors; lengths in tokens."""
    most = HELD_BYTES // (4 * max(1, dimension))
    start = tokens = 0
    counted: set[int] = set()
    for place, (length, query) in enumerate(zip(documents, asked, strict=True)):
        more = length + (0 if query in counted else queries[query])
        if place > start and tokens + more > most:
            yield range(start, place)
            start, tokens, counted = place, 0, set()
            more = length + queries[query]
        tokens += more
        counted.add(query)
    if documents:
        yield range(start, len(documents))
