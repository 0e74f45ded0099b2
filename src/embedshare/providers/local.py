"""A model in this process as a provider: its engine answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedshare.calls import WELL, CallContext, EmbedRequest, EmbedResult, Token
from embedshare.errors import InvalidInput
from embedshare.identity import ModelDescription
from embedshare.providers.base import IndexCopy, Indexes, IndexPiece, Provider
from embedshare.vectors import exact
from embedshare.vectors.client.snapshot import of_another_model

if TYPE_CHECKING:
    from embedshare.engine.engine import Engine

#: Seconds without an embedding after which a health check embeds a text of its own.
FRESH_S = 2.0


class Local(Provider):
    """Answers with an engine."""

    source = "local"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.indexes = LocalIndexes(self)

    @property
    def description(self) -> ModelDescription:
        """The model."""
        return self.engine.description

    def embed(self, request: EmbedRequest, context: CallContext) -> EmbedResult:
        return self.engine.embed(request, context)

    def tokenize(self, request: EmbedRequest, context: CallContext) -> list[list[int]]:
        return self.engine.tokenize(request)

    def tokens(self, request: EmbedRequest, special_tokens: bool, context: CallContext) -> list[list[Token]]:
        return [list(one) for one in self.engine.tokens(request, special_tokens)]

    def ask(self, what: str, context: CallContext) -> Any:
        if what == "active_operations":
            return self.engine.scheduler.active
        if what == "stats":
            return self.engine.stats()
        if what == "health":
            return self._health(context)
        raise InvalidInput(f"unknown query {what!r}")

    def _health(self, context: CallContext) -> dict[str, Any]:
        """The model's health: "ok" if a real embedding succeeded lately or succeeds now."""
        if self.engine.last_embedding_age_s > FRESH_S:
            self.embed(WELL, context)
        return {
            "status": "ok",
            "last_embedding_age_s": round(self.engine.last_embedding_age_s, 3),
            "active_operations": self.engine.scheduler.active,
            "uptime": self.engine.stats()["uptime"],
        }


class LocalIndexes(Indexes):
    """The vectors of a handle, searched in place and exactly. Nothing is copied or stored."""

    def __init__(self, provider: Local) -> None:
        self._provider = provider

    def search(
        self, index: IndexCopy, query: EmbedRequest, k: int, context: CallContext
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Indexes. Raises ModelMismatch."""
        found = self._provider.description.identity
        if found != index.identity:
            raise of_another_model(index.identity, found)
        row = self._provider.embed(query, context).rows
        row = exact.unit(row) if index.metric == "cosine" else row
        rows = index.contents.rows(index.metric)
        scores, positions = exact.search(rows, row, min(k, len(rows)), index.metric)
        return index.contents.ids[positions[0]], scores[0]

    def describe(self, index: IndexCopy, context: CallContext) -> dict[str, Any]:
        contents = index.contents
        told = {"version": contents.version, "count": len(contents.ids), "kind": "flat", "built": True}
        return {**told, "recall": 1.0, "bytes": 0}

    def put(self, index: IndexCopy, piece: IndexPiece, context: CallContext) -> int:
        """See Indexes. The handle has the vectors already."""
        return piece.total

    def remove(self, index: IndexCopy, before: int, ids: Sequence[int], context: CallContext) -> int:
        """See Indexes. The handle has removed them already."""
        return len(ids)
