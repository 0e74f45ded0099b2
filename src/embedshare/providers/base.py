"""A provider answers the calls of one model, here or in the model server."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np

from embedshare.calls import (
    WELL_TEXT,
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
from embedshare.errors import NotServed
from embedshare.identity import ModelDescription
from embedshare.telemetry.calls import Source
from embedshare.vectors.client.snapshot import IndexSnapshot
from embedshare.vectors.kinds import Kind, Metric


class IndexCopy(NamedTuple):
    """A vector index as its handle knows it at one moment."""

    name: bytes
    """Its id in the model server: 16 random bytes."""

    identity: str
    """The model whose vectors it holds."""

    metric: Metric
    kind: Kind
    contents: IndexSnapshot


class IndexPiece(NamedTuple):
    """Vectors of an index, number `start` and on of `total`: int64 ids (n,), float32 rows (n, dimension)."""

    ids: np.ndarray
    rows: np.ndarray
    start: int
    total: int


class Indexes(abc.ABC):
    """Answers the calls of vector indexes. Each raises UnknownIndex for an unknown index."""

    @abc.abstractmethod
    def search(
        self, index: IndexCopy, query: EmbedRequest, k: int, context: CallContext
    ) -> tuple[np.ndarray, np.ndarray]:
        """The int64 ids and float32 scores of the `k` documents nearest to the query's text, best first."""

    @abc.abstractmethod
    def describe(self, index: IndexCopy, context: CallContext) -> dict[str, Any]:
        """Its `version`, `count`, `kind`, `built`, `recall` and `bytes`; see VectorIndex.describe."""

    @abc.abstractmethod
    def put(self, index: IndexCopy, piece: IndexPiece, context: CallContext) -> int:
        """Add vectors, after which it is `index.contents.version`; returns its new count."""

    @abc.abstractmethod
    def remove(self, index: IndexCopy, before: int, ids: Sequence[int], context: CallContext) -> int:
        """Remove vectors from version `before`, which becomes `index.contents.version`; returns its old
        count."""


class Provider(abc.ABC):
    """Answers the calls of a model; thread-safe."""

    source: ClassVar[Source]
    indexes: Indexes

    @abc.abstractmethod
    def embed(self, request: EmbedRequest, context: CallContext) -> EmbedResult:
        """Vectors; raises what the model raises (see EmbeddingClient.encode)."""

    @abc.abstractmethod
    def tokenize(self, request: EmbedRequest, context: CallContext) -> list[list[int]]:
        """The token ids that the model reads of each text with its prompt."""

    @abc.abstractmethod
    def tokens(self, request: EmbedRequest, special_tokens: bool, context: CallContext) -> list[list[Token]]:
        """Every token of each text with its prompt, without truncation; special ones as `special_tokens`
        says."""

    def score(self, request: ScoreRequest, context: CallContext) -> ScoreResult:
        """Scores of texts; raises NotServed if the model has none."""
        raise not_served(self.describe(context), "scores")

    def outputs(self, request: OutputsRequest, context: CallContext) -> OutputsResult:
        """Several outputs of one pass; raises NotServed for one that the model does not have."""
        raise not_served(self.describe(context), " and ".join(request.outputs))

    def embed_images(
        self, images: Sequence[bytes], request: EmbedRequest, context: CallContext
    ) -> EmbedResult:
        """Vectors of images, each the content of an image file; `request` has no inputs, and says how.

        Raises NotServed if the model reads no images, InvalidImage, TooLarge.
        """
        raise not_served(self.describe(context), "embeddings of images")

    def probe(self, context: CallContext, texts: Sequence[str] = (WELL_TEXT,)) -> None:
        """Let the model answer for these texts, whatever it gives; raises what it raises."""
        model = self.describe(context)
        if "dense" in model.outputs:
            self.embed(EmbedRequest(list(texts), ""), context)
        elif "scores" in model.outputs:
            self.score(ScoreRequest([texts[0]], list(texts), ""), context)
        else:
            kinds = cast("tuple[Output, ...]", model.outputs)
            self.outputs(OutputsRequest(list(texts), kinds, ""), context)

    def vocabulary(self, context: CallContext) -> list[str]:
        """The text of each token id; raises NotServed if the model has none here."""
        raise not_served(self.describe(context), "its vocabulary")

    @abc.abstractmethod
    def describe(self, context: CallContext) -> ModelDescription:
        """The model as it is now."""

    @abc.abstractmethod
    def ask(self, what: str, context: CallContext) -> Any:
        """The answer to a query: `active_operations`, `health`, `models` or `stats`."""


def not_served(model: ModelDescription, wanted: str) -> NotServed:
    """The error for a call that the model has no answer to."""
    return NotServed(f"{model.model_name} does not give {wanted}; it gives {model.can}")


class LoadedProvider(Provider):
    """A provider that a pool of models loads and closes."""

    description: ModelDescription
    model_bytes: int | None = None
    """The memory that it takes in this process, as far as it is known."""

    def service(self) -> dict[str, Any] | None:
        """The state of the remote service behind it; None for a model of this process."""
        return None

    @abc.abstractmethod
    def close(self) -> None:
        """Free what it holds; no call uses it any more."""
