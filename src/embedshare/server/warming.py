"""Embeds the most asked texts of the last day in the background, so that they are cached."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby

from loguru import logger

from embedshare.cache.cached import CachedVectors
from embedshare.cache.most_asked import Asked
from embedshare.calls import CallContext, EmbedRequest, EmbedResult
from embedshare.errors import EmbedshareError, Overloaded
from embedshare.models import failover
from embedshare.models.pool import ModelPool, State

#: A piece has at most this many texts and characters: a call that comes meanwhile waits for one piece.
TEXTS, CHARACTERS = 16, 2000
#: Seconds that a piece waits for a moment without calls; a server that has none embeds one piece after them.
PATIENCE_S = 1.0
#: Seconds between two looks whether there are calls, and whether a model was loaded.
_LOOK_S, _LOAD_LOOK_S = 0.02, 0.5


class Warmer:
    """Embeds texts of loaded models piece by piece; those of others wait until their model is loaded.

    Models of remote services are left out: they would cost money that no caller asked for.
    """

    def __init__(self, cache: CachedVectors, pool: ModelPool, stop: threading.Event) -> None:
        self._cache = cache
        self._pool = pool
        self._stop = stop
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[EmbedRequest]] = {}
        self._is_running = False

    def add(self, model: str, texts: list[Asked]) -> None:
        """Embed texts of the model with this id, the first ones first, in place of those that wait."""
        with self._lock:
            self._waiting[model] = deque(_pieces(texts))
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._work, name="warmer", daemon=True).start()

    def _work(self) -> None:
        count, began = 0, time.monotonic()
        while not self._stop.is_set():
            model = self._next_model()
            if model is None:
                if self._ends():
                    logger.info("Embedded {:,} most asked texts in {:.1f} s", count, time.monotonic() - began)
                    return
                self._stop.wait(_LOAD_LOOK_S)
                continue
            self._wait_for_a_quiet_moment()
            count += self._embed_piece(model)

    def _ends(self) -> bool:
        with self._lock:
            self._is_running = bool(self._waiting)
            return not self._is_running

    def _next_model(self) -> str | None:
        """A loaded model with texts that wait; models that are gone are forgotten."""
        with self._lock:
            for model in list(self._waiting):
                try:
                    spec = self._pool.spec(model)
                    if not self._waiting[model] or spec.cache == "off" or not spec.is_local:
                        del self._waiting[model]
                    elif self._pool.state(model) is State.READY:
                        return model
                except EmbedshareError:
                    del self._waiting[model]
            return None

    def _wait_for_a_quiet_moment(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while self._pool.calls and time.monotonic() < until and not self._stop.wait(_LOOK_S):
            pass

    def _embed_piece(self, model: str) -> int:
        """Embed the model's next piece; returns the number of its texts that are cached now."""
        with self._lock:
            piece = self._waiting[model][0]
        try:
            described, spec = self._pool.describe(model), self._pool.spec(model)
            if described is None:
                return 0
            # A check neither loads the model nor keeps it loaded, and is not counted.
            context = CallContext(is_gone=self._stop.is_set, is_check=True)
            compute = partial(self._computed, model, described.identity, context)
            self._cache.embed(described, piece, context, compute, shared=spec.cache == "all")
            embedded = len(piece.inputs)
        except Overloaded:  # it was unloaded meanwhile, or has enough to do
            self._stop.wait(_LOAD_LOOK_S)
            return 0
        except EmbedshareError as error:
            logger.debug("Could not embed most asked texts of {}: {}", model, type(error).__name__)
            embedded = 0
        with self._lock:
            if self._waiting.get(model) and self._waiting[model][0] is piece:
                self._waiting[model].popleft()
        return embedded

    def _computed(
        self, model: str, identity: str, context: CallContext, request: EmbedRequest
    ) -> EmbedResult:
        return failover.embed(self._pool, model, identity, request, context)


def _pieces(texts: Iterable[Asked]) -> Iterator[EmbedRequest]:
    """Requests of texts that follow each other and were asked for alike."""
    for (prompt, task, truncate), alike in groupby(texts, lambda one: one[1:]):
        piece: list[str] = []
        for asked in alike:
            if piece and (len(piece) == TEXTS or sum(map(len, piece)) + len(asked.text) > CHARACTERS):
                yield EmbedRequest(piece, prompt, task=task, truncate=truncate)
                piece = []
            piece.append(asked.text)
        yield EmbedRequest(piece, prompt, task=task, truncate=truncate)
