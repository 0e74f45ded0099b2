"""A model's vectors through the cache: each new text is computed once, however many callers wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from embedshare.cache import keys as cache_keys
from embedshare.cache.memory import MemoryCache
from embedshare.cache.redis import RedisCache
from embedshare.calls import CallContext, EmbedRequest, EmbedResult, Timings
from embedshare.errors import DeadlineExceeded
from embedshare.identity import ModelDescription
from embedshare.telemetry import tracing
from embedshare.telemetry.histogram import MILLISECONDS, Histogram

#: More values than any vector has: whole vectors are requested and cached.
_ALL = 1 << 30
#: Seconds between two looks whether the caller of a waiting call is still there.
_LOOK_S = 0.2
_IN_MEMORY = {tracing.CACHE_LEVEL: "memory"}
_IN_REDIS = {tracing.CACHE_LEVEL: "redis"}


class Leased(Protocol):
    """A loaded model: models.loaded_model.LoadedModel."""

    description: ModelDescription
    provider: Any


class _Part(NamedTuple):
    """Vectors of some keys."""

    keys: Sequence[bytes]
    rows: np.ndarray
    token_counts: Sequence[int]


_NOTHING = _Part([], np.empty((0, 0), np.float32), [])


class _Claim:
    """Keys that one call computes, and the texts behind them."""

    def __init__(
        self,
        space: bytes,
        keys: list[bytes],
        request: EmbedRequest,
        places: dict[bytes, int],
        shared: RedisCache | None,
    ) -> None:
        self.space, self.keys, self.request, self.places = space, keys, request, places
        self.shared = shared
        self.computed = 0
        """Keys whose vectors the model computed."""


#: The vectors that a call is computing; None if it fails.
_Flight = Future["_Part | None"]
#: Loads a model and returns it for a `with` block.
Lease = Callable[[], AbstractContextManager[Leased]]


class CachedVectors:
    """The vectors of a server's models; thread-safe.

    A call that finds another one computing a text waits for it, and computes the text itself if that one
    fails. `shared` is looked at for texts that are not in memory.
    """

    def __init__(self, memory: MemoryCache, shared: RedisCache | None = None) -> None:
        self._memory = memory
        self._shared = shared
        self._lock = threading.Lock()
        self._flights: dict[bytes, _Flight] = {}
        self._hits = self._misses = self._joined = self._calls_without_model = 0
        self._total_ms = Histogram(MILLISECONDS)

    def embed(
        self,
        model: ModelDescription,
        request: EmbedRequest,
        context: CallContext,
        lease: Lease,
        shared: bool = True,
    ) -> EmbedResult:
        """The vectors of a request whose prompt is a text, as `model` would return them.

        `lease` is called only if a text is neither cached nor being computed; `shared`: whether Redis may
        hold the vectors too. Raises what `lease` and the model's `embed` raise, DeadlineExceeded.
        """
        began = time.monotonic()
        space = cache_keys.space_of(model)
        keys = cache_keys.keys_of(request, space)
        places = {key: place for place, key in enumerate(keys)}
        parts: list[_Part] = []
        timings, hits, misses, lacking = Timings(), 0, 0, list(places)
        while lacking:
            cached = (self._cached_traced if tracing.enabled else self._cached)(space, lacking)
            hits += len(cached.keys)
            lacking = _without(lacking, cached, parts)
            own, others = self._claim(lacking)
            if own:
                claimed = _Claim(space, own, request, places, self._shared if shared else None)
                found, timings = self._fulfilled(claimed, model.dimension, context, lease)
                misses += claimed.computed
                hits += len(own) - claimed.computed
                lacking = _without(lacking, found, parts)
            for flight in others:
                with tracing.span("wait for another call"):
                    joined = _awaited(flight, context)
                if joined is not None:
                    lacking = _without(lacking, joined, parts)
        result = _result(keys, parts, request, model, timings)
        self._count(hits, misses, len(places) - hits - misses, time.monotonic() - began)
        return result

    def clear(self, model: ModelDescription | None = None) -> int:
        """Drop the vectors of one model, or all; returns their number, of the level that had most.

        Raises ServerUnavailable if Redis does not answer; then those in memory are gone.
        """
        space = None if model is None else cache_keys.space_of(model)
        gone = self._memory.clear(space)
        return gone if self._shared is None else max(gone, self._shared.clear(space))

    def stats(self) -> dict[str, Any]:
        """Texts that were found, computed, and computed for another call, and the levels' figures.

        `total_ms`: the times of calls that no model computed for.
        """
        with self._lock:
            counts = {
                "hits": self._hits, "misses": self._misses, "joined": self._joined,
                "calls_without_model": self._calls_without_model,
                "total_ms": self._total_ms.snapshot(),
            }  # fmt: skip
        shared = {} if self._shared is None else {"redis": self._shared.stats()}
        return counts | self._memory.stats() | shared

    def _cached(self, space: bytes, keys: list[bytes]) -> _Part:
        found = self._memory.get(space, keys)
        if found is None:
            return _NOTHING
        return _Part([keys[position] for position in found.positions], found.rows, found.token_counts)

    def _cached_traced(self, space: bytes, keys: list[bytes]) -> _Part:
        """`_cached` with a span."""
        with tracing.span("cache", _IN_MEMORY) as span:
            found = self._cached(space, keys)
            span.note({tracing.TEXTS: len(keys), tracing.CACHE_HITS: len(found.keys)})
            return found

    def _claim(self, keys: list[bytes]) -> tuple[list[bytes], list[_Flight]]:
        """The keys that this call computes, and what other calls compute of the rest."""
        with self._lock:
            own = [key for key in keys if key not in self._flights]
            others = list(dict.fromkeys(self._flights[key] for key in keys if key in self._flights))
            flight: _Flight = Future()
            self._flights.update(dict.fromkeys(own, flight))
            return own, others

    def _fulfilled(
        self, claim: _Claim, dimension: int, context: CallContext, lease: Lease
    ) -> tuple[_Part, Timings]:
        """The vectors of claimed keys; waiting calls get them too."""
        part: _Part | None = None
        try:
            # Another call may have computed some between the first look and the claim.
            parts = [self._cached(claim.space, claim.keys)]
            lacking = _without(claim.keys, parts[0], [])
            if lacking and claim.shared is not None:
                stored = self._from_shared(claim.shared, claim.space, lacking, dimension)
                lacking = _without(lacking, stored, parts)
            timings = Timings()
            if lacking:
                computed, timings = self._computed(claim, lacking, context, lease)
                parts.append(computed)
            part = _joined(parts)
            return part, timings
        finally:
            self._land(claim.keys, part)

    def _from_shared(self, shared: RedisCache, space: bytes, keys: list[bytes], dimension: int) -> _Part:
        with tracing.span("cache", _IN_REDIS) as span:
            found = shared.get(space, keys, dimension)
            hits = 0 if found is None else len(found.positions)
            span.note({tracing.TEXTS: len(keys), tracing.CACHE_HITS: hits})
        if found is None:
            return _NOTHING
        part = _Part([keys[position] for position in found.positions], found.rows, found.token_counts)
        self._memory.put(space, part.keys, part.rows, part.token_counts, found.left_s)
        return part

    def _computed(
        self, claim: _Claim, keys: list[bytes], context: CallContext, lease: Lease
    ) -> tuple[_Part, Timings]:
        request, space = claim.request, claim.space
        inputs = [request.inputs[claim.places[key]] for key in keys]
        whole = msgspec.structs.replace(request, inputs=inputs, normalize=False, dimensions=_ALL)
        with lease() as leased:
            found: EmbedResult = leased.provider.embed(whole, context)
            is_same = cache_keys.space_of(leased.description) == space
        claim.computed = len(keys)
        if is_same:  # else the model was loaded again in another precision meanwhile
            self._memory.put(space, keys, found.rows, found.token_counts)
            if claim.shared is not None:
                claim.shared.put_later(space, keys, found.rows, found.token_counts)
        return _Part(keys, found.rows, found.token_counts), found.timings

    def _land(self, keys: Iterable[bytes], part: _Part | None) -> None:
        """End this call's flight."""
        with self._lock:
            flights = {self._flights.pop(key) for key in keys}
        for flight in flights:
            flight.set_result(part)

    def _count(self, hits: int, misses: int, joined: int, took_s: float) -> None:
        with self._lock:
            if not misses:
                self._total_ms.observe(took_s * 1e3)
            self._hits += hits
            self._misses += misses
            self._joined += joined
            self._calls_without_model += not misses


def _joined(parts: list[_Part]) -> _Part:
    parts = [part for part in parts if part.keys]
    if len(parts) == 1:
        return parts[0]
    keys = [key for part in parts for key in part.keys]
    counts = [count for part in parts for count in part.token_counts]
    return _Part(keys, np.concatenate([part.rows for part in parts]), counts)


def _without(keys: list[bytes], part: _Part, parts: list[_Part]) -> list[bytes]:
    """The keys that lack a vector after those of `part`, of which theirs are added to `parts`."""
    wanted, known = set(keys), set(part.keys)
    if known <= wanted:
        parts.append(part)
    else:  # of another call, which may have computed many more
        rows = [number for number, key in enumerate(part.keys) if key in wanted]
        of_rows = [part.keys[row] for row in rows], part.rows[rows], [part.token_counts[row] for row in rows]
        parts.append(_Part(*of_rows))
    return [key for key in keys if key not in known]


def _awaited(flight: _Flight, context: CallContext) -> _Part | None:
    """What another call computes; None if it fails. Raises DeadlineExceeded."""
    while not wait([flight], min(_LOOK_S, max(0.0, context.deadline - time.monotonic()))).done:
        if time.monotonic() >= context.deadline or context.is_gone():
            raise DeadlineExceeded("another call did not compute the same texts in time")
    return flight.result()


def _result(
    keys: list[bytes], parts: list[_Part], request: EmbedRequest, model: ModelDescription, timings: Timings
) -> EmbedResult:
    """The rows in the order of the keys, truncated and normalised as the model does it."""
    whole = _joined(parts)
    at = {key: number for number, key in enumerate(whole.keys)}
    order = [at[key] for key in keys]
    rows = whole.rows[order]
    rows = np.ascontiguousarray(rows[:, : request.dimensions or model.dimension])
    if request.normalize:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return EmbedResult(rows, [whole.token_counts[number] for number in order], timings, model)
