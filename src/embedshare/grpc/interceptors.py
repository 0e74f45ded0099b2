"""What each call goes through before its method: request id, count and time, errors, caller, deadline."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import grpc
from loguru import logger

from embedshare.errors import EmbedshareError, SessionServerUnavailable
from embedshare.grpc import callers, faults
from embedshare.grpc.callers import Door
from embedshare.telemetry import request_ids
from embedshare.telemetry.histogram import MILLISECONDS, Histogram, quantile

#: The metadata with a call's id, which is sent back.
REQUEST_ID = "x-request-id"
#: Services that need no key, and answer during a drain.
OPEN = ("grpc.health.v1.", "grpc.reflection.")
_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))

if TYPE_CHECKING:  # grpc's own classes take no parameters
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any] | None
    Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]


def deadline() -> float:
    """The deadline of this task's call, a moment of `time.monotonic()`."""
    return _deadline.get()


class CallCounts:
    """Ended calls by method and status, and their times; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: Counter[str] = Counter()
        self._times: dict[str, Histogram] = {}
        self.in_flight = 0

    def begin(self) -> None:
        """A call begins."""
        with self._lock:
            self.in_flight += 1

    def end(self, method: str, status: str, seconds: float) -> None:
        """A call has ended."""
        with self._lock:
            self.in_flight -= 1
            self._ended[f"{method} {status}"] += 1
            self._times.setdefault(method, Histogram(MILLISECONDS)).observe(seconds * 1e3)

    def snapshot(self) -> tuple[dict[str, int], dict[str, float]]:
        """The number of ended calls by method and status, and the 99th percentile of their ms by method."""
        with self._lock:
            times = {method: one.snapshot() for method, one in self._times.items()}
            ended = dict(self._ended)
        p99 = {method: quantile(one["bounds"], one["counts"], 0.99) for method, one in times.items()}
        return ended, {method: value for method, value in p99.items() if value is not None}


class Entrance(grpc.aio.ServerInterceptor):
    """Around every method but those of OPEN. `is_draining`: whether new calls are refused."""

    def __init__(self, door: Door, counts: CallCounts) -> None:
        self._door = door
        self._counts = counts
        self.is_draining = False

    async def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> Handler:
        handler: Any = await continuation(details)
        method = details.method
        if handler is None or method.lstrip("/").startswith(OPEN):
            return cast("Handler", handler)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._around_stream(method, handler.stream_stream),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._around(method, handler.stream_unary),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._around(method, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _around(self, method: str, answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def answered(request: Any | AsyncIterator[Any], context: Context) -> Any:
            async with self._counted(method, context):
                return await answer(request, context)

        return answered

    def _around_stream(
        self, method: str, answer: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def answered(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            async with self._counted(method, context):
                async for one in answer(requests, context):
                    yield one

        return answered

    @asynccontextmanager
    async def _counted(self, method: str, context: Context) -> AsyncIterator[None]:
        """Around one call, whose errors become its status."""
        name, began, status = method.rpartition("/")[2], time.monotonic(), "CANCELLED"
        self._counts.begin()
        try:
            await self._enter(method, context)
            yield
            status = "OK"
        except EmbedshareError as error:
            code = faults.status_of(error)
            status = code.name
            logger.debug("Refused {} ({}: {})", name, type(error).__name__, error.message)
            await context.abort(code, error.message, faults.trailing(error))
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError):
                raise
            status = "INTERNAL"
            logger.opt(exception=error).error("Failed to answer {}", name)
            await context.abort(grpc.StatusCode.INTERNAL, "the session server failed; its log says why")
        finally:
            self._counts.end(name, status, time.monotonic() - began)

    async def _enter(self, method: str, context: Context) -> None:
        given = dict(context.invocation_metadata() or ())
        request_id = given.get(REQUEST_ID)
        taken = request_ids.taken_or_made(request_id if isinstance(request_id, str) else None)
        request_ids.enter(taken)
        await context.send_initial_metadata(((REQUEST_ID, taken),))
        if self.is_draining:
            raise SessionServerUnavailable("the session server is stopping: retry on another connection")
        left_s = context.time_remaining()
        _deadline.set(float("inf") if left_s is None else time.monotonic() + left_s)
        callers.enter(await self._door.admit(method, given, context.peer()))
