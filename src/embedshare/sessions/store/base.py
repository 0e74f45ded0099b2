"""A store of chunks and their vectors, the same over an engine in this process and over a Qdrant server."""

from __future__ import annotations

import abc
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from embedshare.sessions.store.weights import Weights

#: The namespace of every id that the stores make.
_NAMESPACE = uuid.UUID("6ad1f5b0-4bb4-5c0c-9f0c-6c2b7f0f8f61")


class Point(NamedTuple):
    """A chunk of a version of a document, and its vector."""

    id: uuid.UUID
    """`point_id` of the next three."""

    session: str
    document: str
    chunk: int
    vector: np.ndarray
    """Of shape (dimension,), any length but 0; stored in float32 and with length 1."""

    text: str
    start: int
    end: int
    page: int | None
    heading: str | None
    metadata: dict[str, Any]
    version: str
    """The upload that the chunk belongs to, which `VectorStore.publish` names."""

    sparse: Weights | None = None
    """In a store with a sparse model, and only there."""


class Found(NamedTuple):
    """A chunk that a search found."""

    id: uuid.UUID
    """`point_id` of session, document and chunk."""

    score: float
    """The cosine, in [-1, 1]; the dot product where a sparse vector was searched for."""

    document: str
    chunk: int
    text: str
    start: int
    end: int
    page: int | None
    heading: str | None
    metadata: dict[str, Any]


def point_id(session: str, document: str, chunk: int) -> uuid.UUID:
    """The id of a chunk: a UUIDv5, equal for each upload of the document."""
    return derived_id(session, document, chunk)


def derived_id(*parts: str | int) -> uuid.UUID:
    """A UUIDv5 that different parts never share."""
    return uuid.uuid5(_NAMESPACE, msgspec.json.encode(parts).decode())


class VectorStore(abc.ABC):
    """The chunks of all sessions of one vector space. Thread-safe.

    The vectors are of one model (`identity`) and of one `dimension`. The chunks of a store with a sparse
    model have sparse vectors too, all of the model `sparse`. A document is visible as a whole or not
    at all: chunks are first put under a version that no search sees, and publishing a version replaces the
    visible one. This holds for searches under way, and after a killed process.

    Every method raises StoreUnavailable if the engine does not answer, and StoreFailed if it fails.
    """

    identity: str
    dimension: int
    sparse: str | None
    """The identity of the sparse model, if there is one."""

    @abc.abstractmethod
    def declare(self, session: str, schema: Mapping[str, str]) -> None:
        """Set the types of a session's metadata fields, in place of those that the store was opened with.

        `schema`: keyword, integer, float, boolean or date by field. Declared fields are checked and indexed.
        It lasts until the session is dropped or the store is closed. Raises InvalidInput.
        """

    @abc.abstractmethod
    def put(self, points: Sequence[Point]) -> None:
        """Store chunks, which stay invisible until their version is published.

        All are checked before any is stored. Raises InvalidInput, and of it ZeroVector and NotFinite for a
        vector without a direction; field `chunk`: the chunk's number.
        """

    @abc.abstractmethod
    def publish(self, session: str, document: str, version: str, chunks: int) -> None:
        """Make a version of a document visible, in place of the visible one, which is deleted.

        `chunks`: how many the version has. Raises UploadIncomplete if another number is stored; then nothing
        has changed.
        """

    @abc.abstractmethod
    def drop_document(self, session: str, document: str, version: str | None = None) -> None:
        """Delete a version of a document, visible or not; None: all versions. Unknown ones are ignored.

        An upload that puts further chunks into a dropped version cannot publish it; it must drop it by name.
        """

    @abc.abstractmethod
    def drop_session(self, session: str) -> None:
        """Delete everything of a session."""

    @abc.abstractmethod
    def search(
        self,
        session: str,
        vector: np.ndarray,
        top_k: int,
        filters: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
    ) -> list[Found]:
        """The published chunks nearest to `vector` (dimension,) by cosine, exactly; best first.

        `top_k`: how many at most, from 1 to 10,000. Equal scores are ordered by id; of thousands, the engine
        chooses. `score_threshold` is strict: a chunk with that very score is left out.
        `filters`: by metadata field a value, a list of which one must be equal, or a range such as
        {"gte": 1, "lt": 5}; document, chunk, page and heading are fields too. A metadata field that is a list
        matches if one of its values does. Raises InvalidInput.
        """

    @abc.abstractmethod
    def rankings(
        self,
        session: str,
        queries: Sequence[np.ndarray | Weights],
        top_k: int,
        filters: Mapping[str, Any] | None = None,
    ) -> list[list[Found]]:
        """What `search` finds for each query, all of one moment: no document changes between them.

        Weights are searched for by their dot product with those of chunks, exactly. A chunk that shares no
        token with them is not found.
        """

    @abc.abstractmethod
    def count(self, session: str) -> int:
        """The published chunks of a session."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the engine; a second call does nothing. What was published stays."""


def open_embedded(
    folder: Path, identity: str, dimension: int, schema: Mapping[str, str], sparse: str | None = None
) -> VectorStore:
    """The store in a folder of its own, which this makes; one process at a time may open it.

    `sparse`: the identity of the model of its sparse vectors; None: it has none.

    An acknowledged publish survives the kill of the process. A power cut may lose the last seconds'
    documents, each as a whole. Raises StoreInUse, ModelMismatch (the folder is another model's), StoreFailed,
    MissingDependency, InvalidInput (the schema).
    """
    from embedshare.sessions.store import embedded, published

    engine = embedded.opened(folder, identity, dimension, sparse)
    return published.PublishedStore(engine, identity, dimension, schema, sparse)


def open_remote(
    url: str,
    api_key: str | None,
    prefer_grpc: bool,
    collection: str,
    identity: str,
    dimension: int,
    schema: Mapping[str, str],
    timeout_s: float = 30.0,
    sparse: str | None = None,
) -> VectorStore:
    """The store in a collection of a Qdrant server, which this makes if it is not there.

    `sparse`: as of `open_embedded`. `prefer_grpc`: gRPC is expected on the port behind the url's, 6334 by
    default, as Qdrant has it.

    A collection belongs to one store of one process: another one would delete this one's uploads under way.
    `timeout_s` bounds each wait for the server. Raises StoreInUse (by this process), StoreUnavailable,
    ModelMismatch (the collection is another model's), StoreFailed, MissingDependency, InvalidInput.
    """
    from embedshare.sessions.store import published, remote

    engine = remote.opened(url, api_key, prefer_grpc, collection, identity, dimension, sparse, timeout_s)
    return published.PublishedStore(engine, identity, dimension, schema, sparse)
