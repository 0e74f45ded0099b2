"""The methods of text-embeddings-inference's own gRPC services, with the model server's default model."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import embedshare
from embedshare.calls import EmbedRequest, EmbedResult
from embedshare.errors import NotServed
from embedshare.grpc import callers, interceptors, model_access
from embedshare.grpc import tei_pb2 as pb
from embedshare.grpc.tei_pb2_grpc import EmbedServicer, InfoServicer, TokenizeServicer
from embedshare.sessions.embedding import Models
from embedshare.settings import Settings

R = TypeVar("R")
A = TypeVar("A")
#: Threads of all calls, which are also the requests of one stream that are computed at a time.
CALLS = 16


class TeiServicer(InfoServicer, EmbedServicer, TokenizeServicer):
    """Every method raises errors of embedshare, which an interceptor turns into a status.

    The API key of a call must be one for the default model.
    """

    def __init__(self, models: Models, settings: Settings) -> None:
        self._models = models
        self._settings = settings
        self._threads = ThreadPoolExecutor(CALLS, "tei")

    async def Info(self, request: pb.InfoRequest, context: Any) -> pb.InfoResponse:  # noqa: N802
        await self._check()
        model = await self._call(self._models.describe, "", interceptors.deadline())
        settings = self._settings
        return pb.InfoResponse(
            version=embedshare.__version__, model_id=model.model_name, model_sha=model.identity,
            model_dtype=model.dtype, model_type=pb.MODEL_TYPE_EMBEDDING, max_concurrent_requests=CALLS,
            max_input_length=model.max_seq_length, max_batch_tokens=settings.server.max_waiting_tokens,
            max_client_batch_size=settings.server.max_texts, tokenization_workers=CALLS,
        )  # fmt: skip

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        await self._check()
        return await self._embed(request)

    async def EmbedStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.EmbedRequest], context: Any
    ) -> AsyncIterator[pb.EmbedResponse]:
        await self._check()
        async for answer in in_order(request_iterator, self._embed):
            yield answer

    async def Tokenize(self, request: pb.EncodeRequest, context: Any) -> pb.EncodeResponse:  # noqa: N802
        await self._check()
        return await self._tokenize(request)

    async def TokenizeStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.EncodeRequest], context: Any
    ) -> AsyncIterator[pb.EncodeResponse]:
        await self._check()
        async for answer in in_order(request_iterator, self._tokenize):
            yield answer

    def close(self) -> None:
        """End the threads that have nothing to do."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _check(self) -> None:
        await self._call(model_access.check, self._models, callers.current(), "")

    async def _embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        if request.truncation_direction == pb.TRUNCATION_DIRECTION_LEFT:
            raise NotServed("texts are truncated at their end alone: TRUNCATION_DIRECTION_RIGHT")
        began = time.monotonic()
        wanted = EmbedRequest(
            [request.inputs], prompt_name=request.prompt_name if request.HasField("prompt_name") else None,
            normalize=request.normalize, truncate=request.truncate,
        )  # fmt: skip
        found = await self._call(self._models.embed, "", wanted, interceptors.deadline())
        metadata = _metadata(request.inputs, found, time.monotonic() - began)
        return pb.EmbedResponse(embeddings=found.rows[0].tolist(), metadata=metadata)

    async def _tokenize(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        prompt_name = request.prompt_name if request.HasField("prompt_name") else None
        wanted = EmbedRequest([request.inputs], prompt_name=prompt_name)
        if prompt_name is None:
            wanted = EmbedRequest([request.inputs], prompt="")
        [tokens] = await self._call(self._models.all_tokens, "", wanted, request.add_special_tokens)
        return pb.EncodeResponse(
            tokens=[
                pb.SimpleToken(id=id_, text=text, special=special, start=start, stop=stop)
                for id_, text, special, start, stop in tokens
            ]
        )

    async def _call(self, do: Callable[..., R], *given: Any) -> R:
        """`do` in a thread, with the request's id."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, do, *given)


async def in_order(
    requests: AsyncIterator[R], answer: Callable[[R], Awaitable[A]], most: int = CALLS
) -> AsyncIterator[A]:
    """The answers to a stream of requests in their order, of which `most` are computed at a time.

    Each is given as soon as it and those before it are there, whether or not a further request has come.
    """
    waiting: deque[asyncio.Future[A]] = deque()
    following: asyncio.Future[R | None] | None = asyncio.ensure_future(_next(requests))
    try:
        while following is not None or waiting:
            reads = following is not None and len(waiting) < most
            awaited: list[asyncio.Future[Any]] = [following] if following is not None and reads else []
            await asyncio.wait(
                awaited + ([waiting[0]] if waiting else []), return_when=asyncio.FIRST_COMPLETED
            )
            if reads and following is not None and following.done():
                request = following.result()
                following = None if request is None else asyncio.ensure_future(_next(requests))
                if request is not None:
                    waiting.append(asyncio.ensure_future(answer(request)))
            while waiting and waiting[0].done():
                yield await waiting.popleft()
    finally:
        for pending in waiting:
            pending.cancel()
        if following is not None:
            following.cancel()


async def _next(requests: AsyncIterator[R]) -> R | None:
    async for request in requests:
        return request
    return None


def _metadata(text: str, found: EmbedResult, took_s: float) -> pb.Metadata:
    tokenize_ms, queue_ms, compute_ms = found.timings.stages
    return pb.Metadata(
        compute_chars=len(text), compute_tokens=found.tokens, total_time_ns=int(took_s * 1e9),
        tokenization_time_ns=int(tokenize_ms * 1e6), queue_time_ns=int(queue_ms * 1e6),
        inference_time_ns=int(compute_ms * 1e6),
    )  # fmt: skip
