"""The second stage of a search: a model scores the candidates of the first stage, and they are sorted by it.

Pure, but for the model, which a caller asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from embedshare import scores
from embedshare.calls import ScoreResult
from embedshare.errors import InvalidInput, NotServed
from embedshare.identity import ModelDescription

T = TypeVar("T")
#: The most candidates that a caller may ask for.
MOST_CANDIDATES = 1000
#: Candidates of each wanted result, and their number up to which this holds, unless the caller names another.
_FACTOR, _USUAL_CANDIDATES = 4, 100


def candidates(top_k: int, asked: int | None = None) -> int:
    """How many results of the first stage are scored for the best `top_k`. Raises InvalidInput."""
    if asked is None:
        return max(top_k, min(_FACTOR * top_k, _USUAL_CANDIDATES))
    if not top_k <= asked <= MOST_CANDIDATES:
        raise InvalidInput(
            f"rerank_candidates is {asked:,}; allowed: {top_k:,} (the results wanted) to {MOST_CANDIDATES:,}"
        )
    return asked


def check(model: ModelDescription) -> None:
    """Raise NotServed unless the model gives a single score of a query and a text."""
    if not scores.is_reranker(model) and "multi-vector" not in model.outputs:
        raise NotServed(
            f"{model.model_name} cannot rerank, which needs one score of a pair; it gives {model.can}"
        )


def ordered(found: Sequence[T], scored: ScoreResult) -> list[tuple[T, float]]:
    """The candidates with their scores as `/rerank` shows them (`scores.normalized`), best first.

    Equal ones keep the order of the first stage. Raises EngineFailed for a score that is not finite.
    """
    shown = scores.normalized(scored)[:, 0]
    return [(found[place], float(shown[place])) for place in scores.best_first(scored)]
