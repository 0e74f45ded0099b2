"""The model server as a provider: each call is a message over this thread's connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedshare.calls import CallContext, EmbedRequest, EmbedResult, Token, are_tokens, prompt_of
from embedshare.identity import ModelDescription
from embedshare.ipc import codec
from embedshare.ipc.connection import Connections
from embedshare.providers.base import IndexCopy, Indexes, IndexPiece, Provider
from embedshare.telemetry import request_ids


class Served(Provider):
    """Answers through `connections`. A prompt is resolved for the connection's model."""

    source = "server"

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.indexes = ServedIndexes(connections)

    def embed(self, request: EmbedRequest, context: CallContext) -> EmbedResult:

        def encode(call_id: int, left: float, model: ModelDescription) -> codec.Call:
            inputs: Any = request.inputs
            normalize, dimensions, request_id = request.normalize, request.dimensions, request_ids.current()
            if are_tokens(inputs):
                return codec.EncodeTokens(call_id, left, inputs, normalize, dimensions, request_id)
            return codec.Encode(
                call_id, left, inputs, prompt_of(request, model), normalize, dimensions, request_id,
                request.truncate, request.task,
            )  # fmt: skip

        rows, told, model = self.connections.call(encode, context.deadline)
        return EmbedResult(rows, told.token_counts, told.timings, model)

    def tokenize(self, request: EmbedRequest, context: CallContext) -> list[list[int]]:
        return [list(map(int, one)) for one in self._tokenize(request, context)]

    def tokens(self, request: EmbedRequest, special_tokens: bool, context: CallContext) -> list[list[Token]]:
        told: list[list[Any]] = self._tokenize(request, context, True, special_tokens)
        return [[tuple(token) for token in one] for one in told]

    def ask(self, what: str, context: CallContext) -> Any:
        return self.connections.call(
            lambda call_id, left, model: codec.Query(call_id, left, what), context.deadline
        )

    def forget(self, names: list[bytes], context: CallContext) -> None:
        """Have the server drop the indexes of these names."""
        self.connections.call(
            lambda call_id, left, model: codec.Forget(call_id, left, names), context.deadline
        )

    def _tokenize(self, request: EmbedRequest, context: CallContext, *how: bool) -> Any:
        texts: Any = request.inputs
        return self.connections.call(
            lambda call_id, left, model: codec.Tokenize(
                call_id, left, texts, prompt_of(request, model), request_ids.current(), *how
            ),
            context.deadline,
        )


class ServedIndexes(Indexes):
    """The indexes of the model server."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def search(
        self, index: IndexCopy, query: EmbedRequest, k: int, context: CallContext
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Indexes; one round trip."""
        (text,) = query.inputs

        def search(call_id: int, left: float, model: ModelDescription) -> codec.Call:
            return codec.Search(
                call_id, left, index.name, index.contents.version, str(text), prompt_of(query, model), k,
                query.dimensions, request_ids.current(),
            )  # fmt: skip

        found: tuple[np.ndarray, np.ndarray] = self._connections.call(search, context.deadline)[0]
        return found

    def describe(self, index: IndexCopy, context: CallContext) -> dict[str, Any]:
        described: dict[str, Any] = self._connections.call(
            lambda call_id, left, model: codec.Inspect(call_id, left, index.name), context.deadline
        )
        return described

    def put(self, index: IndexCopy, piece: IndexPiece, context: CallContext) -> int:
        """See Indexes; the vectors follow the message as raw bytes."""
        raw = piece.ids.astype("<i8").tobytes() + piece.rows.astype("<f4", copy=False).tobytes()
        count = self._connections.call(
            lambda call_id, left, model: codec.Put(
                call_id, left, index.name, index.identity, index.contents.version, index.metric, index.kind,
                piece.rows.shape[1], piece.start, piece.total, len(piece.ids),
            ),
            context.deadline,
            memoryview(raw),
        )  # fmt: skip
        return int(count)

    def remove(self, index: IndexCopy, before: int, ids: Sequence[int], context: CallContext) -> int:
        count = self._connections.call(
            lambda call_id, left, model: codec.Remove(
                call_id, left, index.name, before, index.contents.version, list(ids)
            ),
            context.deadline,
        )
        return int(count)
