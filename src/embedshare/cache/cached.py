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
from embedshare.calls import CallContext, EmbedRequest, EmbedResult, Timings
from embedshare.errors import DeadlineExceeded
from embedshare.identity import ModelDescription

#: More values than any vector has: whole vectors are requested and cached.
_ALL = 1 << 30
#: Seconds between two looks whether the caller of a waiting call is still there.
_LOOK_S = 0.2


class Leased(Protocol):
    """A loaded model: models.loaded_model.LoadedModel."""

    description: ModelDescription
    provider: Any


class _Part(NamedTuple):
    """Vectors of some keys."""

    keys: Sequence[bytes]
    rows: np.ndarray
    token_counts: Sequence[int]


#: The vectors that a call is computing; None if it fails.
_Flight = Future["_Part | None"]
#: Loads a model and returns it for a `with` block.
Lease = Callable[[], AbstractContextManager[Leased]]


class CachedVectors:
    """The vectors of a server's models; thread-safe.

    A call that finds another one computing a text waits for it, and computes the text itself if that one
    fails.
    """

    def __init__(self, memory: MemoryCache) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._flights: dict[bytes, _Flight] = {}
        self._hits = self._misses = self._joined = self._calls_without_model = 0

    def embed(
        self, model: ModelDescription, request: EmbedRequest, context: CallContext, lease: Lease
    ) -> EmbedResult:
        """The vectors of a request whose prompt is a text, as `model` would return them.

        `lease` is called only if a text is neither cached nor being computed. Raises what it and the model's
        `embed` raise, DeadlineExceeded.
        """
        space = cache_keys.space_of(model)
        keys = cache_keys.keys_of(request, space)
        places = {key: place for place, key in enumerate(keys)}
        parts: list[_Part] = []
        timings, hits, misses, lacking = Timings(), 0, 0, list(places)
        while lacking:
            cached = self._cached(space, lacking)
            hits += len(cached.keys)
            lacking = _without(lacking, cached, parts)
            own, others = self._claim(lacking)
            if own:
                # Another call may have computed them between the two looks.
                late = self._cached(space, own)
                computed, timings = self._computed(
                    space, _without(own, late, []), late, request, places, context, lease
                )
                misses += len(computed.keys) - len(late.keys)
                hits += len(late.keys)
                lacking = _without(lacking, computed, parts)
            for flight in others:
                joined = _awaited(flight, context)
                if joined is not None:
                    lacking = _without(lacking, joined, parts)
        self._count(hits, misses, len(places) - hits - misses)
        return _result(keys, parts, request, model, timings)

    def clear(self, model: ModelDescription | None = None) -> int:
        """Drop the vectors of one model, or all; returns their number."""
        return self._memory.clear(None if model is None else cache_keys.space_of(model))

    def stats(self) -> dict[str, int]:
        """Texts that were found, computed, and computed for another call, and the memory's figures."""
        with self._lock:
            counts = {
                "hits": self._hits, "misses": self._misses, "joined": self._joined,
                "calls_without_model": self._calls_without_model,
            }  # fmt: skip
        return counts | self._memory.stats()

    def _cached(self, space: bytes, keys: list[bytes]) -> _Part:
        found = self._memory.get(space, keys)
        if found is None:
            return _Part([], np.empty((0, 0), np.float32), [])
        return _Part([keys[position] for position in found.positions], found.rows, found.token_counts)

    def _claim(self, keys: list[bytes]) -> tuple[list[bytes], list[_Flight]]:
        """The keys that this call computes, and what other calls compute of the rest."""
        with self._lock:
            own = [key for key in keys if key not in self._flights]
            others = list(dict.fromkeys(self._flights[key] for key in keys if key in self._flights))
            flight: _Flight = Future()
            self._flights.update(dict.fromkeys(own, flight))
            return own, others

    def _computed(
        self,
        space: bytes,
        keys: list[bytes],
        late: _Part,
        request: EmbedRequest,
        places: dict[bytes, int],
        context: CallContext,
        lease: Lease,
    ) -> tuple[_Part, Timings]:
        """The vectors of claimed keys, of which those in `late` are known; waiting calls get them too."""
        part: _Part | None = None
        try:
            if not keys:
                part = late
                return part, Timings()
            inputs = [request.inputs[places[key]] for key in keys]
            whole = msgspec.structs.replace(request, inputs=inputs, normalize=False, dimensions=_ALL)
            with lease() as leased:
                found: EmbedResult = leased.provider.embed(whole, context)
                is_same = cache_keys.space_of(leased.description) == space
            if is_same:  # else the model was loaded again in another precision meanwhile
                self._memory.put(space, keys, found.rows, found.token_counts)
            rows = np.concatenate([found.rows, late.rows]) if late.keys else found.rows
            part = _Part([*keys, *late.keys], rows, [*found.token_counts, *late.token_counts])
            return part, found.timings
        finally:
            self._land([*keys, *late.keys], part)

    def _land(self, keys: Iterable[bytes], part: _Part | None) -> None:
        """End this call's flight."""
        with self._lock:
            flights = {self._flights.pop(key) for key in keys}
        for flight in flights:
            flight.set_result(part)

    def _count(self, hits: int, misses: int, joined: int) -> None:
        with self._lock:
            self._hits += hits
            self._misses += misses
            self._joined += joined
            self._calls_without_model += not misses


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
    at = {key: number for number, key in enumerate(key for part in parts for key in part.keys)}
    token_counts = [count for part in parts for count in part.token_counts]
    order = [at[key] for key in keys]
    rows = np.concatenate([part.rows for part in parts if part.keys])[order]
    rows = np.ascontiguousarray(rows[:, : request.dimensions or model.dimension])
    if request.normalize:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return EmbedResult(rows, [token_counts[number] for number in order], timings, model)
