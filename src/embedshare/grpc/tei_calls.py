"""The threads of calls of text-embeddings-inference's services, and the order of their streams."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from embedshare.calls import EmbedResult, OutputsResult, ScoreResult
from embedshare.errors import NotServed
from embedshare.grpc import callers, model_access
from embedshare.grpc import tei_pb2 as pb
from embedshare.sessions.embedding import Models

R = TypeVar("R")
A = TypeVar("A")
#: Threads of all calls, which are also the requests of one stream that are computed at a time.
CALLS = 16
#: The metadata that names a model.
_MODEL = "model"


class TeiCalls:
    """Runs the calls of models in threads of its own, and admits API keys to models."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._threads = ThreadPoolExecutor(CALLS, "tei")

    async def admitted(self, context: Any) -> str:
        """The name of the model that a call asks for, "" for the default one.

        Raises Forbidden if its API key may not use that model.
        """
        named = dict(context.invocation_metadata() or ()).get(_MODEL, "")
        await self.run(model_access.check, self.models, callers.current(), named)
        return str(named)

    async def run(self, do: Callable[..., R], *given: Any) -> R:
        """`do` in a thread, with the request's id."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, do, *given)

    def close(self) -> None:
        """End the threads that have nothing to do."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def check_direction(request: Any) -> None:
    """Raise NotServed for a request to truncate texts at their beginning."""
    if request.truncation_direction == pb.TRUNCATION_DIRECTION_LEFT:
        raise NotServed("texts are truncated at their end alone: TRUNCATION_DIRECTION_RIGHT")


def prompt_name(request: Any) -> str | None:
    """The prompt that a request names."""
    return str(request.prompt_name) if request.HasField("prompt_name") else None


def metadata(texts: Sequence[str], found: EmbedResult | ScoreResult | OutputsResult, began: float) -> Any:
    """The figures of a call that began at this moment of `time.monotonic()`."""
    tokenize_ms, queue_ms, compute_ms = found.timings.stages
    return pb.Metadata(
        compute_chars=sum(map(len, texts)), compute_tokens=found.tokens,
        total_time_ns=int((time.monotonic() - began) * 1e9), tokenization_time_ns=int(tokenize_ms * 1e6),
        queue_time_ns=int(queue_ms * 1e6), inference_time_ns=int(compute_ms * 1e6),
    )  # fmt: skip


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
