"""Searches in sessions: by dense vectors, by sparse ones, or by both, and reranked by a model that scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from embedshare import reranking
from embedshare.calls import Output
from embedshare.errors import InvalidInput
from embedshare.sessions.embedding import Models
from embedshare.sessions.fusion import reciprocal_ranks
from embedshare.sessions.manager import Session, SessionManager
from embedshare.sessions.parts import Found
from embedshare.sessions.store.weights import Weights

#: The most hits of a search, and the number unless the caller names one.
MOST_HITS, DEFAULT_HITS = 1000, 10
#: The vectors that a search goes by.
Mode = Literal["dense", "sparse", "hybrid"]
_KINDS: dict[Mode, tuple[Output, ...]] = {
    "dense": ("dense",), "sparse": ("sparse",), "hybrid": ("dense", "sparse"),
}  # fmt: skip
#: Chunks that each ranking of a hybrid search has: this many of each wanted hit, and at least this number.
_FUSED_FACTOR, _LEAST_FUSED = 4, 100


class Search(NamedTuple):
    """What a caller asks for; None is the default."""

    query: str
    top_k: int | None = None
    filters: Mapping[str, Any] | None = None
    threshold: float | None = None
    """Only scores above it, of a dense search's cosines."""

    mode: str | None = None
    """hybrid by default in a session with a sparse model, else dense."""

    rerank: str | None = None
    """The model that scores the hits of the first stage, "" being the default one."""

    rerank_candidates: int | None = None
    """How many it scores."""


class Hit(NamedTuple):
    """A chunk that a search found."""

    chunk: Found
    score: float
    """The cosine, the dot product of sparse vectors, or the sum of reciprocal ranks of a hybrid search."""

    rerank_score: float | None = None


class Searches:
    """Searches in the documents of sessions; thread-safe."""

    def __init__(self, sessions: SessionManager, models: Models) -> None:
        self._sessions = sessions
        self._models = models

    def search(self, session: Session, asked: Search, limit: float) -> Sequence[Hit]:
        """The best chunks for a query, best first, by the moment `limit` of `time.monotonic()`.

        Raises InvalidInput, UnknownModel and NotServed for a model that cannot rerank, QuotaExceeded,
        ModelMismatch, and the errors of the models and the store.
        """
        count, mode = _checked_count(asked.top_k), _checked_mode(asked, session)
        if asked.rerank is None:
            return self._found(session, asked, mode, count, limit)
        candidates = reranking.candidates(count, asked.rerank_candidates)
        reranking.check(self._models.describe(asked.rerank, limit))
        found = self._found(session, asked, mode, candidates, limit)
        return self._reranked(session, asked.query, asked.rerank, found, limit)[:count]

    def _found(self, session: Session, asked: Search, mode: Mode, count: int, limit: float) -> Sequence[Hit]:
        """The best `count` of the first stage."""
        owner, tokens = session.record.owner, self._sessions.tokens
        tokens.check(owner)
        query = self._models.of_query(session.config, asked.query, _KINDS[mode], limit)
        tokens.check(owner)
        tokens.add(owner, query.tokens)
        session.searches += 1
        store, uid, filters = self._sessions.collections.of(session.record), session.record.uid, asked.filters
        if mode == "dense":
            found = store.search(uid, query.dense[0], count, filters or None, asked.threshold)
            return [Hit(chunk, chunk.score) for chunk in found]
        wanted: list[np.ndarray | Weights] = [*query.dense, *query.sparse]
        if mode == "sparse":
            [found] = store.rankings(uid, wanted, count, filters or None)
            return [Hit(chunk, chunk.score) for chunk in found]
        depth = max(_FUSED_FACTOR * count, _LEAST_FUSED)
        return _fused(store.rankings(uid, wanted, depth, filters or None))[:count]

    def _reranked(
        self, session: Session, query: str, model: str, found: Sequence[Hit], limit: float
    ) -> list[Hit]:
        scored = self._models.score(model, query, [hit.chunk.text for hit in found], limit)
        self._sessions.tokens.add(session.record.owner, scored.tokens)
        return [hit._replace(rerank_score=score) for hit, score in reranking.ordered(found, scored)]


def _fused(rankings: Sequence[Sequence[Found]]) -> list[Hit]:
    """The chunks of a dense and a sparse ranking, by the sums of their reciprocal ranks."""
    chunks = {chunk.id: chunk for ranking in rankings for chunk in ranking}
    scores = reciprocal_ranks([[chunk.id for chunk in ranking] for ranking in rankings])
    return [Hit(chunks[id], score) for id, score in scores]


def _checked_count(top_k: int | None) -> int:
    count = DEFAULT_HITS if top_k is None else top_k
    if not 1 <= count <= MOST_HITS:
        raise InvalidInput(f"top_k is {count:,}; allowed: 1 to {MOST_HITS:,}")
    return count


def _checked_mode(asked: Search, session: Session) -> Mode:
    """The vectors that a search goes by. Raises InvalidInput."""
    is_sparse, threshold = session.config.sparse is not None, asked.threshold
    mode: Any = asked.mode or ("hybrid" if is_sparse else "dense")
    if mode not in get_args(Mode):
        raise InvalidInput(f"mode is {mode[:100]!r}; allowed: {', '.join(get_args(Mode))}")
    if mode != "dense" and not is_sparse:
        raise InvalidInput(f"mode is {mode!r}, and the session has no sparse_model; allowed: dense")
    if threshold is not None and mode != "dense":
        raise InvalidInput(f"score_threshold bounds cosines: leave it out of a search with mode {mode!r}")
    if threshold is not None and not -1.0 <= threshold <= 1.0:
        raise InvalidInput(f"score_threshold is {threshold:g}; allowed: -1 to 1")
    checked: Mode = mode
    return checked
