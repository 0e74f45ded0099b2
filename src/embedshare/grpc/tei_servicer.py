"""The methods of text-embeddings-inference's own gRPC services that describe, tokenize and embed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import embedshare
from embedshare import roles, scores
from embedshare.calls import EmbedRequest, Output, OutputsRequest, OutputsResult
from embedshare.grpc import interceptors
from embedshare.grpc import tei_pb2 as pb
from embedshare.grpc.tei_calls import CALLS, TeiCalls, check_direction, in_order, metadata, prompt_name
from embedshare.grpc.tei_pb2_grpc import EmbedServicer, InfoServicer, TokenizeServicer
from embedshare.identity import ModelDescription
from embedshare.settings import Settings


class TeiServicer(InfoServicer, EmbedServicer, TokenizeServicer):
    """Every method raises errors of embedshare, which an interceptor turns into a status.

    The API key of a call must be one for the model.
    """

    def __init__(self, calls: TeiCalls, settings: Settings) -> None:
        self._calls = calls
        self._settings = settings

    async def Info(self, request: pb.InfoRequest, context: Any) -> pb.InfoResponse:  # noqa: N802
        name = await self._calls.admitted(context)
        model = await self._calls.run(self._calls.models.describe, name, interceptors.deadline())
        settings = self._settings
        return pb.InfoResponse(
            version=embedshare.__version__, model_id=model.model_name, model_sha=model.identity,
            model_dtype=model.dtype, model_type=_model_type(model), max_concurrent_requests=CALLS,
            max_input_length=model.max_seq_length, max_batch_tokens=settings.server.max_waiting_tokens,
            max_client_batch_size=settings.server.max_texts, tokenization_workers=CALLS,
        )  # fmt: skip

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        return await self._embed(await self._calls.admitted(context), request)

    def EmbedStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.EmbedRequest], context: Any
    ) -> AsyncIterator[pb.EmbedResponse]:
        return self._stream(request_iterator, context, self._embed)

    async def EmbedSparse(  # noqa: N802
        self, request: pb.EmbedSparseRequest, context: Any
    ) -> pb.EmbedSparseResponse:
        return await self._embed_sparse(await self._calls.admitted(context), request)

    def EmbedSparseStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.EmbedSparseRequest], context: Any
    ) -> AsyncIterator[pb.EmbedSparseResponse]:
        return self._stream(request_iterator, context, self._embed_sparse)

    async def EmbedAll(self, request: pb.EmbedAllRequest, context: Any) -> pb.EmbedAllResponse:  # noqa: N802
        return await self._embed_all(await self._calls.admitted(context), request)

    def EmbedAllStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.EmbedAllRequest], context: Any
    ) -> AsyncIterator[pb.EmbedAllResponse]:
        return self._stream(request_iterator, context, self._embed_all)

    async def Tokenize(self, request: pb.EncodeRequest, context: Any) -> pb.EncodeResponse:  # noqa: N802
        return await self._tokenize(await self._calls.admitted(context), request)

    def TokenizeStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.EncodeRequest], context: Any
    ) -> AsyncIterator[pb.EncodeResponse]:
        return self._stream(request_iterator, context, self._tokenize)

    async def _stream(
        self, requests: AsyncIterator[Any], context: Any, answer: Callable[[str, Any], Awaitable[Any]]
    ) -> AsyncIterator[Any]:
        name = await self._calls.admitted(context)
        async for found in in_order(requests, partial(answer, name)):
            yield found

    async def _embed(self, name: str, request: pb.EmbedRequest) -> pb.EmbedResponse:
        check_direction(request)
        began = time.monotonic()
        wanted = EmbedRequest(
            [request.inputs], prompt_name=prompt_name(request),
            normalize=request.normalize, truncate=request.truncate,
        )  # fmt: skip
        found = await self._calls.run(self._calls.models.embed, name, wanted, interceptors.deadline())
        told = metadata([request.inputs], found, began)
        return pb.EmbedResponse(embeddings=found.rows[0].tolist(), metadata=told)

    async def _embed_sparse(self, name: str, request: pb.EmbedSparseRequest) -> pb.EmbedSparseResponse:
        began = time.monotonic()
        found = await self._outputs(name, request, "sparse")
        assert found.sparse is not None  # it was asked for
        weights = zip(found.sparse.indices.tolist(), found.sparse.values.tolist(), strict=True)
        values = [pb.SparseValue(index=index, value=value) for index, value in weights]
        told = metadata([request.inputs], found, began)
        return pb.EmbedSparseResponse(sparse_embeddings=values, metadata=told)

    async def _embed_all(self, name: str, request: pb.EmbedAllRequest) -> pb.EmbedAllResponse:
        began = time.monotonic()
        found = await self._outputs(name, request, "multi-vector")
        assert found.multi_vector is not None  # it was asked for
        rows = [pb.TokenEmbedding(embeddings=row) for row in found.multi_vector.rows.tolist()]
        told = metadata([request.inputs], found, began)
        return pb.EmbedAllResponse(token_embeddings=rows, metadata=told)

    async def _outputs(self, name: str, request: Any, output: Output) -> OutputsResult:
        check_direction(request)
        prompt = prompt_name(request)
        role = roles.of_prompt(prompt)
        wanted = OutputsRequest(
            [request.inputs], (output,), prompt_name=prompt,
            task=None if role is None else role.task, truncate=request.truncate,
        )  # fmt: skip
        return await self._calls.run(self._calls.models.outputs, name, wanted, interceptors.deadline())

    async def _tokenize(self, name: str, request: pb.EncodeRequest) -> pb.EncodeResponse:
        prompt = prompt_name(request)
        wanted = EmbedRequest([request.inputs], prompt_name=prompt)
        if prompt is None:
            wanted = EmbedRequest([request.inputs], prompt="")
        [tokens] = await self._calls.run(
            self._calls.models.all_tokens, name, wanted, request.add_special_tokens
        )
        return pb.EncodeResponse(
            tokens=[
                pb.SimpleToken(id=id_, text=text, special=special, start=start, stop=stop)
                for id_, text, special, start, stop in tokens
            ]
        )


def _model_type(model: ModelDescription) -> Any:
    if "scores" not in model.outputs:
        return pb.MODEL_TYPE_EMBEDDING
    return pb.MODEL_TYPE_RERANKER if scores.is_reranker(model) else pb.MODEL_TYPE_CLASSIFIER
