"""Embeds and scores for sessions by the shared models: chunks by their token ids, texts, and queries."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np

from embedshare import calls
from embedshare.calls import (
    CallContext,
    EmbedRequest,
    EmbedResult,
    Output,
    OutputsRequest,
    OutputsResult,
    ScoreRequest,
    ScoreResult,
    Token,
)
from embedshare.client.embedder import Embedder
from embedshare.errors import ClientClosed, InvalidInput, ModelMismatch, NotServed
from embedshare.identity import ModelDescription
from embedshare.providers.base import not_served
from embedshare.sessions.parts import Parts
from embedshare.sessions.records import Config
from embedshare.sessions.store.weights import Weights
from embedshare.settings import Settings

#: The name of this process among the model server's callers.
PROGRAM = "embedshare sessions"
#: Names of the prompts for chunks and for queries, as a SentenceTransformer has them.
DOCUMENT, QUERY = ("document", "passage", "corpus"), ("query",)
#: Tokens of a chunk, and those that it shares with the next one, unless the creator names others.
DEFAULT_CHUNK, DEFAULT_OVERLAP = 512, 50
#: The largest chunk of a model that names no longest sequence.
LONGEST_CHUNK = 8192
#: Seconds that a call for chunks may take: those of other uploads are before it.
CHUNKS_S = 600.0
#: A text whose tokens show what a model puts around a text.
_SAMPLE = "a"
#: Characters of one call for tokens; the model server takes twice as many.
_MOST_CHARS = 1 << 17


class Frame(NamedTuple):
    """The token ids that a model wants around those of a chunk: special ones, and its prompt's."""

    before: list[int]
    after: list[int]
    by_ids: bool
    """Whether the model reads token ids at all."""

    @property
    def size(self) -> int:
        """Tokens that a chunk cannot have."""
        return len(self.before) + len(self.after)


class Encoded(NamedTuple):
    """The vectors of texts, those of kinds that were asked for."""

    dense: Sequence[np.ndarray]
    """Float32 (dimension,) for each text."""

    sparse: Sequence[Weights]
    tokens: int
    """The number of tokens that the models read."""


class Models:
    """The models of the model server, by their names; thread-safe. No local model answers instead."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self._parts = parts
        self._timeout_s = settings.client.timeout_s
        client = dataclasses.replace(
            settings.client, fallback="none", on_model_change="follow",
            timeout_s=max(settings.client.timeout_s, CHUNKS_S),
        )  # fmt: skip
        self._settings = dataclasses.replace(settings, client=client)
        self._lock = threading.Lock()
        self._embedders: dict[str, Embedder] = {}
        self._frames: dict[tuple[str, str], Frame] = {}
        self._is_closed = False

    def describe(self, name: str, limit: float = float("inf")) -> ModelDescription:
        """The model of this name as it is now, by the moment `limit` of `time.monotonic()`.

        Raises UnknownModel and the errors of reaching the server.
        """
        limit = min(limit, time.monotonic() + self._timeout_s)
        return self._embedder(name).describe(limit)

    def checked(self, name: str, identity: str) -> ModelDescription:
        """The model of this name, if it is still the one of this identity. Raises ModelMismatch."""
        model = self.describe(name)
        _check(name, identity, model)
        return model

    def giving(self, output: Output, name: str) -> ModelDescription:
        """The model of this name, which has such an output. Raises NotServed, and what `describe` raises."""
        model = self.describe(name)
        if output not in model.outputs:
            raise not_served(model, {"dense": "embeddings"}.get(output, f"{output} embeddings"))
        return model

    def entries(self) -> list[dict[str, Any]]:
        """The server's models, as EmbeddingClient.models has them."""
        embedder = self._embedder("")
        context = CallContext(embedder.deadline(), is_check=True)
        return list(embedder.failover.ask_server(lambda served: served.ask("models", context)))

    def frame(self, model: ModelDescription, name: str) -> Frame:
        """What the model of this name wants around a chunk."""
        key = (name, model.identity)
        found = self._frames.get(key)
        if found is None:
            found = self._frames[key] = self._asked_frame(model, name)
        return found

    def frame_of(self, name: str, identity: str) -> Frame:
        """The frame of a model that `frame` was asked for before."""
        return self._frames[name, identity]

    def tokens(self, name: str, identity: str, texts: list[str]) -> list[list[Token]]:
        """The tokens of each text without special ones; approximate ones of a model that does not tell its
        own."""
        frame = self._frames.get((name, identity))
        if frame is not None and not frame.by_ids:
            return self._parts.estimated_tokens(texts)
        embedder = self._embedder(name)
        found: list[list[Token]] = []
        for group in _groups(texts):
            found += embedder.tokens(EmbedRequest(group, prompt=""), special_tokens=False)
        return found

    def of_chunks(self, config: Config, ids: Sequence[list[int] | None], texts: Sequence[str]) -> Encoded:
        """All vectors of a session's chunks, dense ones by their ids where there are any.

        Raises ModelMismatch.
        """
        frame = self._frames[config.model, config.identity]
        given = [one for one in ids if one is not None]
        if frame.by_ids and len(given) == len(texts):
            request = EmbedRequest(given)
        else:
            request = EmbedRequest(list(texts), prompt_name=DOCUMENT, task="document")
        kinds: tuple[Output, ...] = ("dense",) if config.sparse is None else ("dense", "sparse")
        sparse = OutputsRequest(list(texts), ("sparse",), prompt_name=DOCUMENT, task="document")
        return self._encoded(config, kinds, request, sparse, float("inf"))

    def of_texts(self, name: str, identity: str, texts: list[str], limit: float) -> EmbedResult:
        """Vectors of documents by the moment `limit` of `time.monotonic()`. Raises ModelMismatch."""
        request = EmbedRequest(texts, prompt_name=DOCUMENT, task="document")
        return self._checked(name, identity, request, min(limit, time.monotonic() + self._timeout_s))

    def of_query(self, config: Config, text: str, kinds: tuple[Output, ...], limit: float) -> Encoded:
        """The vectors of a query of these kinds by the moment `limit` of `time.monotonic()`.

        Raises ModelMismatch.
        """
        limit = min(limit, time.monotonic() + self._timeout_s)
        request = EmbedRequest([text], prompt_name=QUERY, task="query")
        sparse = OutputsRequest([text], ("sparse",), prompt_name=QUERY, task="query")
        return self._encoded(config, kinds, request, sparse, limit)

    def score(self, name: str, query: str, texts: list[str], limit: float) -> ScoreResult:
        """Scores of texts for a query by the moment `limit` of `time.monotonic()`. Raises NotServed."""
        return self.scores(name, ScoreRequest([query], texts), limit)

    def scores(self, name: str, request: ScoreRequest, limit: float) -> ScoreResult:
        """What a caller asks of a model, as `embed`."""
        return self._embedder(name).score(request, min(limit, time.monotonic() + self._timeout_s))

    def outputs(self, name: str, request: OutputsRequest, limit: float) -> OutputsResult:
        """What a caller asks of a model, as `embed`."""
        return self._embedder(name).outputs(request, min(limit, time.monotonic() + self._timeout_s))

    def embed(self, name: str, request: EmbedRequest, limit: float) -> EmbedResult:
        """What a caller asks of a model, by the moment `limit` of `time.monotonic()`."""
        return self._embedder(name).embed(request, min(limit, time.monotonic() + self._timeout_s))

    def all_tokens(self, name: str, request: EmbedRequest, special_tokens: bool) -> list[list[Token]]:
        """The tokens of each text with its prompt. Raises NotServed for a model that does not tell them."""
        return self._embedder(name).tokens(request, special_tokens=special_tokens)

    def close(self) -> None:
        """End the connections; waiting calls raise ClientClosed."""
        with self._lock:
            self._is_closed = True
            embedders, self._embedders = self._embedders, {}
        for embedder in embedders.values():
            embedder.failover.close()

    def _checked(self, name: str, identity: str, request: EmbedRequest, limit: float) -> EmbedResult:
        result = self._embedder(name).embed(request, limit)
        _check(name, identity, result.description)
        return result

    def _encoded(
        self, config: Config, kinds: tuple[Output, ...], dense: EmbedRequest, sparse: OutputsRequest,
        limit: float,
    ) -> Encoded:  # fmt: skip
        """Vectors of these kinds. A model that gives both reads the texts of `sparse` once for them."""
        of_sparse = config.sparse
        if of_sparse is not None and of_sparse.identity == config.identity and len(kinds) > 1:
            both = msgspec.structs.replace(sparse, outputs=kinds)
            result = self._outputs(config.model, config.identity, both, limit)
            return Encoded(
                [] if result.dense is None else list(result.dense), _weights(result), result.tokens
            )
        found = Encoded([], [], 0)
        if "dense" in kinds:
            embedded = self._checked(config.model, config.identity, dense, limit)
            found = Encoded(list(embedded.rows), [], embedded.tokens)
        if "sparse" in kinds and of_sparse is not None:
            result = self._outputs(of_sparse.model, of_sparse.identity, sparse, limit)
            found = Encoded(found.dense, _weights(result), found.tokens + result.tokens)
        return found

    def _outputs(self, name: str, identity: str, request: OutputsRequest, limit: float) -> OutputsResult:
        result = self._embedder(name).outputs(request, limit)
        _check(name, identity, result.description)
        return result

    def _embedder(self, name: str) -> Embedder:
        with self._lock:
            if self._is_closed:
                raise ClientClosed("the session server is stopping")
            found = self._embedders.get(name)
            if found is None:
                others = next(iter(self._embedders.values()), None)
                connections = None if others is None else others.connections
                found = self._embedders[name] = Embedder(self._settings, 3, 1.0, name, connections)
                found.program = PROGRAM
            return found

    def _asked_frame(self, model: ModelDescription, name: str) -> Frame:
        request = EmbedRequest([_SAMPLE], prompt_name=DOCUMENT)
        try:
            [tokens] = self._embedder(name).tokens(request, special_tokens=True)
        except NotServed:
            return Frame([], [], by_ids=False)
        before, after = self._parts.frame(tokens, calls.prompt_of(request, model))
        return Frame(before, after, by_ids=True)


def _weights(result: OutputsResult) -> list[Weights]:
    """Each text's weights."""
    rows = result.sparse
    assert rows is not None, "no answer lacks an output that was asked for"
    bounds = pairwise(rows.offsets.tolist())
    return [Weights(rows.indices[first:end], rows.values[first:end]) for first, end in bounds]


def _check(name: str, identity: str, model: ModelDescription) -> None:
    if model.identity != identity:
        raise ModelMismatch(
            f"the session's vectors are of the model {identity[:12]}, and {name or 'the default model'} is "
            f"{model.model_name} ({model.identity[:12]}) now: create another session",
            expected=identity,
            found=model.identity,
        )


def _groups(texts: list[str]) -> Iterator[list[str]]:
    """The texts in calls that are not too large."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > _MOST_CHARS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def checked_chunking(
    model: ModelDescription, size: int | None, overlap: int | None, frame: Frame
) -> tuple[int, int]:
    """A session's chunk size and overlap in tokens, with defaults. Raises InvalidInput."""
    longest = model.max_seq_length if model.max_seq_length > 0 else LONGEST_CHUNK
    chosen = min(DEFAULT_CHUNK, longest) if size is None else size
    least = frame.size + 1
    if not least <= chosen <= longest:
        raise InvalidInput(
            f"chunk_size is {chosen:,}; {model.model_name} allows {least:,} to {longest:,} tokens, of which "
            f"{frame.size} are its own"
        )
    most = (chosen - frame.size) // 2
    between = min(DEFAULT_OVERLAP, most) if overlap is None else overlap
    if not 0 <= between <= most:
        raise InvalidInput(
            f"chunk_overlap is {between:,}; with a chunk_size of {chosen:,} 0 to {most:,} tokens are allowed"
        )
    return chosen, between
