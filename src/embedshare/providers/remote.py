"""A model of a remote service as a provider: its requests, their answers in order, and its figures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from embedshare.calls import (
    UNBOUNDED,
    CallContext,
    EmbedRequest,
    EmbedResult,
    Inputs,
    Timings,
    Token,
    are_tokens,
    prompt_of,
)
from embedshare.errors import InvalidInput, NotServed, ProviderFailed, TooLarge
from embedshare.identity import ModelDescription, declared_identity
from embedshare.models.spec import ModelSpec, RemoteSpec
from embedshare.providers import batches, endpoints
from embedshare.providers.allowance import Allowance
from embedshare.providers.base import LoadedProvider
from embedshare.providers.endpoint import Answer, Endpoint, RequestFailed
from embedshare.providers.event_loop import EventLoop
from embedshare.providers.guarded import Guarded, Limit
from embedshare.providers.local import summed
from embedshare.providers.spending import Spending
from embedshare.telemetry import tracing
from embedshare.telemetry.histogram import MILLISECONDS, Histogram

#: Requests of one model that are sent at a time.
AT_ONCE = 8
#: The longest that a request may take for a caller without a deadline, in seconds.
_LONGEST_S = 600.0
#: Seconds that loading waits for the service.
_LOAD_S = 30.0
#: The first request's text, whose vector says how many dimensions there are.
_SAMPLE = "How many dimensions does this text have?"
#: The share by which texts may have more tokens a byte than those before them.
_MARGIN = 1.25


class Services(NamedTuple):
    """What the remote models of a server share."""

    loop: EventLoop
    spending: Spending


class Remote(LoadedProvider):
    """A model that a remote service computes; thread-safe."""

    source = "server"

    def __init__(self, spec: ModelSpec, endpoint: Endpoint, services: Services, max_texts: int) -> None:
        self._spec = spec
        self._endpoint = endpoint
        self._loop = services.loop
        self._max_texts = max_texts
        allowance = Allowance(spec.id, endpoint.remote, services.spending)
        self._allowance = allowance
        self._guarded = Guarded(spec.id, allowance, endpoint.remote.timeout_s)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tokens_per_byte = 1.0
        """The most tokens that a byte of text had lately; a token has at least one byte."""
        self._lock = threading.Lock()
        self._total = self._failed = self._texts = self._tokens = self._active = 0
        self._total_ms, self._request_ms = Histogram(MILLISECONDS), Histogram(MILLISECONDS)
        self._loaded = time.monotonic()
        self.description: ModelDescription

    @classmethod
    def load(cls, spec: ModelSpec, services: Services, max_texts: int) -> Remote:
        """Reach the service and embed one text there, which tells the number of dimensions.

        Raises ProviderFailed, ProviderRefused, Overloaded, InvalidInput, MissingDependency.
        """
        context = CallContext(time.monotonic() + _LOAD_S)

        async def opened() -> Remote:
            endpoint = endpoints.of(spec)
            remote = cls(spec, endpoint, services, max_texts)
            try:
                await endpoint.open()
                found = await remote._requested([_SAMPLE], True, Limit(context.deadline, may_wait=False))
            except RequestFailed as failure:
                await endpoint.close()
                raise failure.error from None
            except BaseException:
                await endpoint.close()
                raise
            remote.description = describe(spec, found[0].rows.shape[1], endpoint.max_tokens)
            return remote

        return services.loop.result(opened(), context)

    def embed(self, request: EmbedRequest, context: CallContext = UNBOUNDED) -> EmbedResult:
        """Vectors as the service returns them, then truncated and normalised as the request asks.

        Raises what Guarded.send raises.
        """
        started = time.monotonic()
        with self._lock:
            self._active += 1
        try:
            with tracing.provider(self._spec.provider, self._spec.name):
                found = self._embed(request, context)
        except BaseException:
            self._count(None, started, is_last=context.may_wait)
            raise
        self._count(found, started)
        return found

    def tokenize(self, request: EmbedRequest, context: CallContext = UNBOUNDED) -> list[list[int]]:
        """See Provider. Raises NotServed if the service has no tokenizer for callers."""
        return [[token[0] for token in text] for text in self.tokens(request, True, context)]

    def tokens(
        self, request: EmbedRequest, special_tokens: bool, context: CallContext = UNBOUNDED
    ) -> list[list[Token]]:
        texts = _texts(request, self.description)
        try:
            found = self._loop.result(self._endpoint.tokenize(texts, special_tokens), context)
        except RequestFailed as failure:
            raise failure.error from None
        if found is None:
            raise NotServed(f"{self._spec.id} is a model of {self._spec.provider}, which shows no tokens")
        return found

    def describe(self, context: CallContext = UNBOUNDED) -> ModelDescription:
        return self.description

    def ask(self, what: str, context: CallContext) -> Any:
        if what == "active_operations":
            return self._active
        if what == "stats":
            return self.stats()
        if what == "health":
            return self._health()
        if what == "models":
            return []
        raise InvalidInput(f"unknown query {what!r}")

    def close(self) -> None:
        """Close the connections to the service."""
        self._loop.result(self._endpoint.close(), CallContext(time.monotonic() + 5.0))

    def stats(self) -> dict[str, Any]:
        """The work since the model was loaded, in the form of `Local.stats`."""
        stats = summed([])
        with self._lock:
            total_ms = self._total_ms.snapshot()
            histograms = {**stats["histograms"], "total_ms": total_ms, "compute_ms": total_ms}
            return stats | {
                "total_requests": self._total,
                "successful_requests": self._total - self._failed,
                "failed_requests": self._failed,
                "sequences": self._texts,
                "tokens": self._tokens,
                "active_operations": self._active,
                "uptime": round(time.monotonic() - self._loaded, 3),
                "stage_seconds": {**stats["stage_seconds"], "compute": total_ms["sum"] / 1e3},
                "histograms": histograms,
            }

    def service(self) -> dict[str, Any]:
        """The state of the remote service: whether it is asked, its requests by outcome, time and cost."""
        guarded = self._guarded
        breaker, error = guarded.breaker, guarded.last_error
        state = "closed" if breaker.is_closed else "half-open" if not breaker.retry_after_s else "open"
        with self._lock:
            request_ms = self._request_ms.snapshot()
        return {
            "breaker": state,
            "retry_after_s": round(breaker.retry_after_s, 3),
            "error": None if error is None else error.message,
            "requests": dict(guarded.counts),
            "request_ms": request_ms,
            "tokens": self._tokens,
            "month_cost": self._allowance.spent_this_month,
            "month_budget": self._endpoint.remote.budget_per_month,
        }

    def _health(self) -> dict[str, Any]:
        """Whether the service answered last; it is not asked, which may cost money."""
        service = self.service()
        fault = {} if service["breaker"] == "closed" else {"status": "degraded", "error": service["error"]}
        return {"status": "ok", "active_operations": self._active, "remote": True, **fault}

    def _embed(self, request: EmbedRequest, context: CallContext) -> EmbedResult:
        inputs = request.inputs if are_tokens(request.inputs) else _texts(request, self.description)
        if len(inputs) > self._max_texts:
            raise TooLarge(
                f"the call has {len(inputs):,} texts; EMBEDDING_MAX_TEXTS allows {self._max_texts:,}"
            )
        if are_tokens(inputs) and not self._endpoint.takes_tokens:
            raise InvalidInput(f"{self._spec.provider} embeds texts alone, and no token ids")
        if not inputs:
            rows = np.empty((0, self.description.dimension), np.float32)
            return EmbedResult(rows, [], Timings(), self.description)
        limit = Limit(min(context.deadline, time.monotonic() + _LONGEST_S), context.may_wait)
        started = time.monotonic()
        answers = self._loop.result(self._requested(inputs, request.truncate, limit), context)
        took_ms = (time.monotonic() - started) * 1e3
        rows = self._checked(np.concatenate([answer.rows for answer in answers]))
        rows = np.ascontiguousarray(rows[:, : request.dimensions])
        if request.normalize:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        counts = [count for answer in answers for count in answer.token_counts]
        return EmbedResult(rows, counts, Timings(compute_ms=took_ms), self.description)

    async def _requested(self, inputs: Inputs, truncate: bool, limit: Limit) -> list[_Counted]:
        """The answers to all requests, in the order of the texts. The first failure cancels the others."""
        sizes = batches.sizes_of(inputs)
        most = min(self._endpoint.max_request_tokens, self._allowance.most_tokens)
        runs = batches.split(sizes, self._endpoint.max_texts, most / self._tokens_per_byte)
        tasks = [asyncio.ensure_future(self._one(inputs[run], sizes[run], truncate, limit)) for run in runs]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _one(self, inputs: Inputs, sizes: Sequence[int], truncate: bool, limit: Limit) -> _Counted:
        size: int = sum(sizes)
        expected = size * self._tokens_per_byte

        async def request() -> Answer:
            began = time.monotonic()
            try:
                return await self._endpoint.embed(inputs, truncate)
            finally:
                with self._lock:
                    self._request_ms.observe((time.monotonic() - began) * 1e3)

        async with self._slots:
            rows, told = await self._guarded.send(request, expected, limit)
        tokens = round(expected) if told is None else told
        if told is not None and size:
            self._tokens_per_byte = min(1.0, max(0.01, _MARGIN * told / size))
        return _Counted(rows, batches.shared_out(tokens, sizes))

    def _checked(self, rows: np.ndarray) -> np.ndarray:
        expected = self.description.dimension
        if rows.shape[1] != expected:
            name, provider = self._spec.name, self._spec.provider
            message = (
                f"{provider} sent vectors of {rows.shape[1]} dimensions for {name}, which had {expected}"
            )
            raise ProviderFailed(message)
        return rows

    def _count(self, found: EmbedResult | None, started: float, is_last: bool = True) -> None:
        """A call has ended. One that another model may still answer is no failed call."""
        with self._lock:
            self._active -= 1
            if found is None:
                self._total += is_last
                self._failed += is_last
                return
            self._total += 1
            self._texts += len(found.token_counts)
            self._tokens += found.tokens
            self._total_ms.observe((time.monotonic() - started) * 1e3)


class _Counted(NamedTuple):
    """Vectors of one request, and the tokens of each text."""

    rows: np.ndarray
    token_counts: list[int]


def describe(spec: ModelSpec, dimension: int, max_tokens: int) -> ModelDescription:
    """The description of a remote model, whose identity is what the specification declares."""
    remote = spec.remote or RemoteSpec()
    return ModelDescription(
        declared_identity(spec.space, spec.provider, spec.name, dimension),
        spec.name, dimension, max_tokens, dict(remote.prompts), remote.default_prompt, "cosine",
        ["input_ids", "attention_mask"], 0, "remote", "float32", spec.provider,
    )  # fmt: skip


def _texts(request: EmbedRequest, model: ModelDescription) -> list[str]:
    prompt = prompt_of(request, model)
    return [f"{prompt}{text}" for text in request.inputs]
