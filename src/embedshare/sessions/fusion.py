"""Reciprocal rank fusion: rankings of one search by several kinds of vectors, joined into one. Pure.

Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning
methods", SIGIR 2009: a document's score is the sum of 1 / (60 + rank) over the rankings that have it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

Id = TypeVar("Id", bound=Hashable)
#: The paper's constant. The larger it is, the less the first ranks stand out.
CONSTANT = 60


def reciprocal_ranks(rankings: Sequence[Iterable[Id]]) -> list[tuple[Id, float]]:
    """All ids of the rankings (each without repetition, best first) and their scores, best first.

    Equal scores are ordered by their rank in the first ranking, and then by id.
    """
    scores: dict[Id, float] = {}
    for ranking in rankings:
        for rank, id in enumerate(ranking, 1):
            scores[id] = scores.get(id, 0.0) + 1 / (CONSTANT + rank)
    first = {id: rank for rank, id in enumerate(rankings[0])} if rankings else {}
    last = len(first)
    return sorted(scores.items(), key=lambda item: (-item[1], first.get(item[0], last), item[0]))
