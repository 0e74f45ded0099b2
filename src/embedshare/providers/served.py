"""The model server as a provider: each call is a message over this thread's connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedshare.calls import (
    CallContext,
    EmbedRequest,
    EmbedResult,
    OutputsRequest,
    OutputsResult,
    ScoreRequest,
    ScoreResult,
    Token,
    are_tokens,
)
from embedshare.identity import ModelDescription
from embedshare.ipc import codec
from embedshare.ipc.connection import Connections, MetModel
from embedshare.providers.base import IndexCopy, Indexes, IndexPiece, Provider
from embedshare.telemetry import request_ids


class Served(Provider):
    """Answers with one model of a server. A prompt is resolved for the model as it was met."""

    source = "server"

    def __init__(self, connections: Connections, model: MetModel) -> None:
        self.connections = connections
        self._model = model
        self.indexes = ServedIndexes(connections, model)

    def embed(self, request: EmbedRequest, context: CallContext) -> EmbedResult:
        inputs: Any = request.inputs
        normalize, dimensions, request_id = request.normalize, request.dimensions, request_ids.current()
        if are_tokens(inputs):
            call: codec.Call = codec.EncodeTokens(*codec.UNSENT, inputs, normalize, dimensions, request_id)
        else:
            call = codec.Encode(
                *codec.UNSENT, inputs, "", normalize, dimensions, request_id, request.truncate, request.task
            )
        rows, told, model = self.connections.call(
            call, context.deadline, self._model, request, is_check=context.is_check
        )
        return EmbedResult(rows, told.token_counts, told.timings, model)

    def score(self, request: ScoreRequest, context: CallContext) -> ScoreResult:
        call = codec.Score(
            *codec.UNSENT, request.queries, request.documents, "", request.truncate, request_ids.current()
        )
        rows, told, model = self.connections.call(
            call, context.deadline, self._model, request, is_check=context.is_check
        )
        return ScoreResult(rows, told.token_counts, told.timings, model)

    def outputs(self, request: OutputsRequest, context: CallContext) -> OutputsResult:
        call = codec.EncodeOutputs(
            *codec.UNSENT, request.inputs, "", list(request.outputs), request.normalize, request.dimensions,
            request.max_active_dims, request.truncate, request.task, request_ids.current(),
        )  # fmt: skip
        found: OutputsResult = self.connections.call(
            call, context.deadline, self._model, request, is_check=context.is_check
        )[0]
        return found

    def embed_images(
        self, images: Sequence[bytes], request: EmbedRequest, context: CallContext
    ) -> EmbedResult:
        call = codec.EncodeImages(
            *codec.UNSENT, list(map(len, images)), request.normalize, request.dimensions,
            request_ids.current(),
        )  # fmt: skip
        raw = [memoryview(image) for image in images if image]
        rows, told, model = self.connections.call(call, context.deadline, self._model, raw=raw)
        return EmbedResult(rows, told.token_counts, told.timings, model)

    def tokenize(self, request: EmbedRequest, context: CallContext) -> list[list[int]]:
        return [list(map(int, one)) for one in self._tokenize(request, context)]

    def tokens(self, request: EmbedRequest, special_tokens: bool, context: CallContext) -> list[list[Token]]:
        told: list[list[Any]] = self._tokenize(request, context, True, special_tokens)
        return [[tuple(token) for token in one] for one in told]

    def vocabulary(self, context: CallContext) -> list[str]:
        query = codec.Query(*codec.UNSENT, "vocabulary")
        return [str(token) for token in self.connections.call(query, context.deadline, self._model)]

    def ask(self, what: str, context: CallContext) -> Any:
        query = codec.Query(*codec.UNSENT, what)
        return self.connections.call(query, context.deadline, self._model, is_check=True)

    def describe(self, context: CallContext) -> ModelDescription:
        return self.connections.describe(self._model, context.deadline)

    def forget(self, names: list[bytes], context: CallContext) -> None:
        """Have the server drop the indexes of these names."""
        self.connections.call(codec.Forget(*codec.UNSENT, names), context.deadline)

    def _tokenize(self, request: EmbedRequest, context: CallContext, *how: bool) -> Any:
        texts: Any = request.inputs
        call = codec.Tokenize(*codec.UNSENT, texts, "", request_ids.current(), *how)
        return self.connections.call(call, context.deadline, self._model, request)


class ServedIndexes(Indexes):
    """The indexes of the model server that hold vectors of one model."""

    def __init__(self, connections: Connections, model: MetModel) -> None:
        self._connections = connections
        self._model = model

    def search(
        self, index: IndexCopy, query: EmbedRequest, k: int, context: CallContext
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Indexes; one round trip."""
        (text,) = query.inputs
        call = codec.Search(
            *codec.UNSENT, index.name, index.contents.version, str(text), "", k,
            query.dimensions, request_ids.current(),
        )  # fmt: skip
        found: tuple[np.ndarray, np.ndarray] = self._connections.call(
            call, context.deadline, self._model, query
        )[0]
        return found

    def describe(self, index: IndexCopy, context: CallContext) -> dict[str, Any]:
        call = codec.Inspect(*codec.UNSENT, index.name)
        described: dict[str, Any] = self._connections.call(call, context.deadline, self._model)
        return described

    def put(self, index: IndexCopy, piece: IndexPiece, context: CallContext) -> int:
        """See Indexes; the vectors follow the message as raw bytes."""
        arrays = piece.ids.astype("<i8"), np.ascontiguousarray(piece.rows, "<f4")
        raw = [array.data.cast("B") for array in arrays if array.nbytes]
        call = codec.Put(
            *codec.UNSENT, index.name, index.identity, index.contents.version, index.metric, index.kind,
            piece.rows.shape[1], piece.start, piece.total, len(piece.ids),
        )  # fmt: skip
        return int(self._connections.call(call, context.deadline, self._model, raw=raw))

    def remove(self, index: IndexCopy, before: int, ids: Sequence[int], context: CallContext) -> int:
        call = codec.Remove(*codec.UNSENT, index.name, before, index.contents.version, list(ids))
        return int(self._connections.call(call, context.deadline, self._model))
