"""The methods of text-embeddings-inference's own gRPC services that score: Predict and Rerank."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import numpy as np

from embedshare import reranking, scores
from embedshare.calls import ScoreRequest, ScoreResult
from embedshare.errors import EmptyInput, InvalidInput, TooLarge
from embedshare.grpc import interceptors
from embedshare.grpc import tei_pb2 as pb
from embedshare.grpc.tei_calls import TeiCalls, check_direction, in_order, metadata
from embedshare.grpc.tei_pb2_grpc import PredictServicer, RerankServicer
from embedshare.identity import ModelDescription
from embedshare.settings import Settings


class ScoreServicer(PredictServicer, RerankServicer):
    """Every method raises errors of embedshare, which an interceptor turns into a status.

    The API key of a call must be one for the model.
    """

    def __init__(self, calls: TeiCalls, settings: Settings) -> None:
        self._calls = calls
        self._most_texts, self._most_bytes = settings.server.max_texts, settings.server.max_message_bytes

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:  # noqa: N802
        return await self._predict(await self._calls.admitted(context), request)

    async def PredictPair(  # noqa: N802
        self, request: pb.PredictPairRequest, context: Any
    ) -> pb.PredictResponse:
        return await self._predict_pair(await self._calls.admitted(context), request)

    async def PredictStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.PredictRequest], context: Any
    ) -> AsyncIterator[pb.PredictResponse]:
        name = await self._calls.admitted(context)
        async for found in in_order(request_iterator, partial(self._predict, name)):
            yield found

    async def PredictPairStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.PredictPairRequest], context: Any
    ) -> AsyncIterator[pb.PredictResponse]:
        name = await self._calls.admitted(context)
        async for found in in_order(request_iterator, partial(self._predict_pair, name)):
            yield found

    async def Rerank(self, request: pb.RerankRequest, context: Any) -> pb.RerankResponse:  # noqa: N802
        name = await self._calls.admitted(context)
        check_direction(request)
        return await self._rerank(name, [request.query], list(request.texts), request.truncate, request)

    async def RerankStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.RerankStreamRequest], context: Any
    ) -> pb.RerankResponse:
        name = await self._calls.admitted(context)
        requests: list[pb.RerankStreamRequest] = []
        size = 0
        async for request in request_iterator:
            check_direction(request)
            requests.append(request)
            self._check_count(len(requests))
            size += request.ByteSize()
            if size > self._most_bytes:
                raise TooLarge(
                    f"the stream has more than {self._most_bytes:,} bytes, which EMBEDDING_MAX_MESSAGE_BYTES "
                    "allows"
                )
        if not requests:
            raise EmptyInput("there are no texts: send one or more")
        queries, texts = [one.query for one in requests], [one.text for one in requests]
        truncate = all(one.truncate for one in requests)
        return await self._rerank(name, queries, texts, truncate, requests[0])

    async def _predict(self, name: str, request: pb.PredictRequest) -> pb.PredictResponse:
        return await self._predicted(name, [], request.inputs, request)

    async def _predict_pair(self, name: str, request: pb.PredictPairRequest) -> pb.PredictResponse:
        if len(request.inputs) != 2:
            raise InvalidInput(f"`inputs` must be a pair of texts, not {len(request.inputs)} texts")
        return await self._predicted(name, [request.inputs[0]], request.inputs[1], request)

    async def _predicted(self, name: str, queries: list[str], text: str, request: Any) -> pb.PredictResponse:
        check_direction(request)
        began = time.monotonic()
        wanted = ScoreRequest(queries, [text], truncate=request.truncate)
        found = await self._scored(name, wanted, scores.check_classifies)
        row = (scores.raw(found) if request.raw_scores else scores.normalized(found))[0]
        labels = found.description.labels
        return pb.PredictResponse(
            predictions=[
                pb.Prediction(score=row[number], label=labels[number])
                for number in np.argsort(-row, kind="stable")
            ],
            metadata=metadata([*queries, text], found, began),
        )

    async def _rerank(
        self, name: str, queries: list[str], texts: list[str], truncate: bool, how: Any
    ) -> pb.RerankResponse:
        if not texts:
            raise EmptyInput("`texts` cannot be empty: send one text or more")
        self._check_count(len(texts))
        began = time.monotonic()
        found = await self._scored(name, ScoreRequest(queries, texts, truncate=truncate), reranking.check)
        shown = (scores.raw(found) if how.raw_scores else scores.normalized(found))[:, 0]
        ranks = [
            pb.Rank(index=index, text=texts[index] if how.return_text else None, score=shown[index])
            for index in scores.best_first(found)
        ]
        return pb.RerankResponse(ranks=ranks, metadata=metadata([*queries, *texts], found, began))

    def _check_count(self, texts: int) -> None:
        if texts > self._most_texts:
            raise TooLarge(f"the call has over {self._most_texts:,} texts, which EMBEDDING_MAX_TEXTS allows")

    async def _scored(
        self, name: str, request: ScoreRequest, check: Callable[[ModelDescription], None]
    ) -> ScoreResult:
        limit = interceptors.deadline()
        check(await self._calls.run(self._calls.models.describe, name, limit))
        return await self._calls.run(self._calls.models.scores, name, request, limit)
