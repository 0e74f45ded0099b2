"""A model's vectors through the cache: each new text is computed once, however many callers wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import msgspec
import numpy as np

from embedshare.cache import keys as cache_keys
from embedshare.cache.memory import MemoryCache
from embedshare.cache.shared import SharedLevel
from embedshare.calls import CallContext, EmbedRequest, EmbedResult, Timings
from embedshare.errors import DeadlineExceeded, ServerUnavailable
from embedshare.identity import ModelDescription
from embedshare.telemetry import tracing
from embedshare.telemetry.histogram import MILLISECONDS, Histogram

#: More values than any vector has: whole vectors are requested and cached.
_ALL = 1 << 30
#: Seconds between two looks whether the caller of a waiting call is still there.
_LOOK_S = 0.2
_IN_MEMORY = {tracing.CACHE_LEVEL: "memory"}


class _Part(NamedTuple):
    """Vectors of some keys."""

    keys: Sequence[bytes]
    rows: np.ndarray
    token_counts: Sequence[int]


_NOTHING = _Part([], np.empty((0, 0), np.float32), [])


class _Flight:
    """Keys that one call computes. Another call that drops a key takes it from the flight, whose vector of it
    is not cached then."""

    def __init__(self, space: bytes) -> None:
        self.space = space
        self.result: Future[_Part | None] = Future()
        """Their vectors; None if the call fails."""


class _Claim:
    """Keys that one call computes, the texts behind them, and what came of it."""

    def __init__(
        self,
        flight: _Flight,
        keys: list[bytes],
        request: EmbedRequest,
        places: dict[bytes, int],
        levels: Sequence[SharedLevel],
    ) -> None:
        self.flight, self.keys, self.request, self.places = flight, keys, request, places
        self.levels = levels
        self.computed = 0
        """Keys whose vectors the model computed."""
        self.found: dict[str, int] = {}
        """Keys whose vectors were in a shared level, by its name."""


#: Computes what is not cached.
Compute = Callable[[EmbedRequest], EmbedResult]


class CachedVectors:
    """The vectors of a server's models; thread-safe.

    A call that finds another one computing a text waits for it, and computes the text itself if that one
    fails. `levels` are looked at, in order, for texts that are not in memory; what one has goes to those
    before it.
    """

    def __init__(self, memory: MemoryCache, levels: Sequence[SharedLevel] = ()) -> None:
        self._memory = memory
        self._levels = levels
        self._lock = threading.Lock()
        self._storing = threading.Lock()
        """Held while vectors are stored or dropped, so that none is stored after it was dropped."""
        self._flights: dict[bytes, _Flight] = {}
        self._hits = dict.fromkeys(("memory", *(level.name for level in levels)), 0)
        self._misses = self._joined = self._calls_without_model = 0
        self._total_ms = Histogram(MILLISECONDS)

    def embed(
        self,
        model: ModelDescription,
        request: EmbedRequest,
        context: CallContext,
        compute: Compute,
        shared: bool = True,
    ) -> EmbedResult:
        """The vectors of a request whose prompt is a text, as `model` would return them.

        `compute` is called only if a text is neither cached nor being computed; `shared`: whether the shared
        levels may hold the vectors too. Raises what `compute` raises, DeadlineExceeded.
        """
        began = time.monotonic()
        space = cache_keys.space_of(model)
        keys = cache_keys.keys_of(request, space)
        places = {key: place for place, key in enumerate(keys)}
        parts: list[_Part] = []
        timings, hits, misses, lacking = Timings(), 0, 0, list(places)
        found_below: dict[str, int] = {}
        while lacking:
            cached = (self._cached_traced if tracing.enabled else self._cached)(space, lacking)
            hits += len(cached.keys)
            lacking = _without(lacking, cached, parts)
            if not lacking:
                break
            flight, own, others = self._claim(space, lacking)
            if own:
                claimed = _Claim(flight, own, request, places, self._levels if shared else ())
                found, timings = self._fulfilled(claimed, model.dimension, compute)
                misses += claimed.computed
                hits += len(own) - claimed.computed - sum(claimed.found.values())
                for level, count in claimed.found.items():
                    found_below[level] = found_below.get(level, 0) + count
                lacking = _without(lacking, found, parts)
            for other in others:
                with tracing.span("wait for another call"):
                    joined = _awaited(other.result, context)
                if joined is not None:
                    lacking = _without(lacking, joined, parts)
        result = _result(keys, parts, request, model, timings)
        if not context.is_check:
            joined_count = len(places) - hits - misses - sum(found_below.values())
            self._count(hits, found_below, misses, joined_count, time.monotonic() - began)
        return result

    @property
    def is_shared(self) -> bool:
        """Whether there are levels that outlive this process."""
        return bool(self._levels)

    def clear(self, model: ModelDescription | None = None) -> int:
        """Drop the vectors of one model, or all; returns their number, of the level that had most.

        Raises ServerUnavailable if a shared level does not answer; then the others have dropped theirs.
        """
        return self._drop(None if model is None else cache_keys.space_of(model), None)

    def clear_texts(self, model: ModelDescription, texts: list[str], prompts: Iterable[str]) -> int:
        """Drop the vectors of texts, with each of these prompts and in every form; returns and raises as
        `clear` does.

        A call that computes one of them now does not cache it, and no later call waits for that one.
        """
        space = cache_keys.space_of(model)
        return self._drop(space, list(cache_keys.keys_of_forms(texts, prompts, space)))

    def stats(self) -> dict[str, Any]:
        """Texts that were found, computed, and computed for another call, and the levels' figures.

        `total_ms`: the times of calls that no model computed for.
        """
        with self._lock:
            counts = {
                "hits": sum(self._hits.values()), "hits_by_level": dict(self._hits),
                "misses": self._misses, "joined": self._joined,
                "calls_without_model": self._calls_without_model,
                "total_ms": self._total_ms.snapshot(),
            }  # fmt: skip
        return counts | self._memory.stats() | {level.name: level.stats() for level in self._levels}

    def _drop(self, space: bytes | None, keys: list[bytes] | None) -> int:
        """Drop these keys, or all of a model, or all, of every level.

        From the last level up, so that none gets an entry back from a level after it.
        """
        gone, failure = 0, None
        for level in reversed(self._levels):
            with self._storing:
                self._ground(space, keys)
                dropped = level.drop_later(space, keys)
            try:
                gone = max(gone, level.dropped(dropped))
            except ServerUnavailable as error:
                failure = error
        with self._storing:
            self._ground(space, keys)
            if space is None or keys is None:
                gone = max(gone, self._memory.clear(space))
            else:
                gone = max(gone, self._memory.remove(space, keys))
        if failure is not None:
            raise failure
        return gone

    def _ground(self, space: bytes | None, keys: list[bytes] | None) -> None:
        """Take the dropped keys from the calls that compute them."""
        with self._lock:
            if keys is None:
                keys = [key for key, flight in self._flights.items() if space in (None, flight.space)]
            for key in keys:
                self._flights.pop(key, None)

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

    def _claim(self, space: bytes, keys: list[bytes]) -> tuple[_Flight, list[bytes], list[_Flight]]:
        """The keys that this call computes, and what other calls compute of the rest."""
        flight = _Flight(space)
        with self._lock:
            own = [key for key in keys if key not in self._flights]
            others = list(dict.fromkeys(self._flights[key] for key in keys if key in self._flights))
            self._flights.update(dict.fromkeys(own, flight))
            return flight, own, others

    def _fulfilled(self, claim: _Claim, dimension: int, compute: Compute) -> tuple[_Part, Timings]:
        """The vectors of claimed keys; waiting calls get them too."""
        part: _Part | None = None
        try:
            # Another call may have computed some between the first look and the claim.
            parts = [self._cached(claim.flight.space, claim.keys)]
            lacking = _without(claim.keys, parts[0], [])
            for number in range(len(claim.levels)):
                if lacking:
                    lacking = _without(lacking, self._stored(claim, number, lacking, dimension), parts)
            timings = Timings()
            if lacking:
                computed, timings = self._computed(claim, lacking, compute)
                parts.append(computed)
            part = _joined(parts)
            return part, timings
        finally:
            self._land(claim, part)

    def _stored(self, claim: _Claim, number: int, keys: list[bytes], dimension: int) -> _Part:
        """What a shared level has of these keys; it goes to the levels before it."""
        level = claim.levels[number]
        with tracing.span("cache", {tracing.CACHE_LEVEL: level.name}) as span:
            found = level.get(claim.flight.space, keys, dimension)
            hits = 0 if found is None else len(found.positions)
            span.note({tracing.TEXTS: len(keys), tracing.CACHE_HITS: hits})
        if found is None:
            return _NOTHING
        part = _Part([keys[position] for position in found.positions], found.rows, found.token_counts)
        claim.found[level.name] = len(part.keys)
        self._store(claim.flight, part, found.left_s, claim.levels[:number])
        return part

    def _computed(self, claim: _Claim, keys: list[bytes], compute: Compute) -> tuple[_Part, Timings]:
        request, space = claim.request, claim.flight.space
        inputs = [request.inputs[claim.places[key]] for key in keys]
        whole = msgspec.structs.replace(request, inputs=inputs, normalize=False, dimensions=_ALL)
        found = compute(whole)
        claim.computed = len(keys)
        part = _Part(keys, found.rows, found.token_counts)
        # Else the model was loaded again in another precision meanwhile, or another one answered for it.
        if cache_keys.space_of(found.description) == space:
            self._store(claim.flight, part, None, claim.levels)
        return part, found.timings

    def _store(
        self, flight: _Flight, part: _Part, left_s: Sequence[float] | None, levels: Sequence[SharedLevel]
    ) -> None:
        """Put vectors into memory and these levels, but for keys that were dropped meanwhile.

        `left_s`: the seconds that each has left, if it is not new.
        """
        with self._storing:
            with self._lock:
                kept = [at for at, key in enumerate(part.keys) if self._flights.get(key) is flight]
            if not kept:
                return
            if len(kept) < len(part.keys):
                part = _rows_of(part, kept)
                left_s = None if left_s is None else [left_s[at] for at in kept]
            self._memory.put(flight.space, *part, left_s)
            for level in levels:
                level.put_later(flight.space, *part, left_s)

    def _land(self, claim: _Claim, part: _Part | None) -> None:
        """End this call's flight."""
        with self._lock:
            for key in claim.keys:
                if self._flights.get(key) is claim.flight:
                    del self._flights[key]
        claim.flight.result.set_result(part)

    def _count(self, hits: int, found_below: dict[str, int], misses: int, joined: int, took_s: float) -> None:
        with self._lock:
            if not misses:
                self._total_ms.observe(took_s * 1e3)
            self._hits["memory"] += hits
            for level, count in found_below.items():
                self._hits[level] += count
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
        parts.append(_rows_of(part, [number for number, key in enumerate(part.keys) if key in wanted]))
    return [key for key in keys if key not in known]


def _rows_of(part: _Part, rows: list[int]) -> _Part:
    """Some rows of a part."""
    return _Part([part.keys[row] for row in rows], part.rows[rows], [part.token_counts[row] for row in rows])


def _awaited(flight: Future[_Part | None], context: CallContext) -> _Part | None:
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
