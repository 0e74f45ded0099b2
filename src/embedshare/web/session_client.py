"""What the routes of sessions are handed: a session server's functions, for the owner of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from embedshare.errors import SessionsDisabled
from embedshare.web.guards import auth
from embedshare.web.model_client import served_name
from embedshare.web.models import Models

FieldType = Literal["keyword", "integer", "float", "boolean", "date"]
State = Literal["ingesting", "ready", "failed"]


class Sessions(Protocol):
    """A session server's functions for one owner, who sees the sessions of its own alone.

    They return the fields of the structs below, and raise the server's errors as classes of
    embedshare.errors, SessionServerUnavailable if it does not answer.
    """

    def create_session(
        self,
        session_id: str | None,
        model: str,
        *,
        chunk_size: int | None,
        chunk_overlap: int | None,
        metadata_schema: Mapping[str, str],
        qdrant_config: Mapping[str, Any] | None,
        sparse_model: str | None,
    ) -> dict[str, Any]: ...
    def get_session(self, session_id: str) -> dict[str, Any]: ...
    def list_sessions(self) -> list[dict[str, Any]]: ...
    def update_session(
        self, session_id: str, *, chunk_size: int | None, chunk_overlap: int | None
    ) -> dict[str, Any]: ...
    def destroy_session(self, session_id: str) -> None: ...
    def process_file(
        self,
        session_id: str,
        filename: str,
        content_type: str | None,
        chunks: Iterable[bytes],
        metadata: Mapping[str, Any],
    ) -> dict[str, Any]: ...
    def get_embeddings(self, session_id: str, texts: Sequence[str]) -> np.ndarray: ...
    def search(
        self,
        session_id: str,
        query: str,
        top_k: int,
        filters: Mapping[str, Any] | None,
        score_threshold: float | None,
        *,
        mode: str,
        rerank: str | None,
        rerank_candidates: int | None,
    ) -> list[dict[str, Any]]: ...
    def documents(self, session_id: str) -> list[dict[str, Any]]: ...
    def document(self, session_id: str, document_id: str) -> dict[str, Any]: ...
    def delete_document(self, session_id: str, document_id: str) -> None: ...
    def status(self) -> dict[str, Any]: ...


#: A session server's functions for the owner of this name.
SessionsOf = Callable[[str], Sessions]


class Session(msgspec.Struct):
    """A session. `chunk_size` and `chunk_overlap` are tokens of its model, `expires_at` seconds since 1970.

    `model` is empty for the model that was the default at its creation. `sparse_model` is null in a session
    without sparse vectors. Each use puts off `expires_at`. `qdrant_url` and `collection` are empty where the
    session server's own store has the vectors.
    """

    session_id: str
    model: str
    sparse_model: str | None
    dimension: int
    chunk_size: int
    chunk_overlap: int
    metadata_schema: dict[str, str]
    documents: int
    chunks: int
    bytes: int
    created_at: float
    expires_at: float | None
    qdrant_url: str
    collection: str


class Document(msgspec.Struct):
    """A document, or one that is being read: its bytes and chunks so far. It is searched once it is `ready`.

    `size` is null until all of its bytes came, `error` says why it failed.
    """

    document_id: str
    filename: str
    state: State
    bytes: int
    size: int | None
    chunks: int
    stored: int
    error: str | None
    created_at: float
    metadata: dict[str, Any]


class FoundChunk(msgspec.Struct, omit_defaults=True):
    """A chunk near the query: `score` is the cosine of their vectors, from -1 to 1, higher is nearer.

    In a sparse search it is their dot product, in a hybrid one the sum of 1 / (60 + rank) over the dense and
    the sparse ranking. `rerank_score` is that of the model that `rerank` names, higher is better.
    `start` and `end` are its characters in the document's text. `page` is of PDF files, from 1; `heading` is
    the nearest one above it.
    """

    id: str
    score: float
    document: str
    chunk: int
    text: str
    start: int
    end: int
    page: int | None
    heading: str | None
    metadata: dict[str, Any]
    rerank_score: float | None = None


class ProcessedFile(msgspec.Struct):
    """A stored document: its id, its chunks' ids, and their number."""

    success: bool
    message: str
    chunks_processed: int
    embeddings_created: int
    points_stored: int
    chunk_ids: list[str]
    document_id: str


class CallerSessions:
    """The sessions that a request may use. `sessions` is None in a worker without them."""

    def __init__(self, sessions: SessionsOf | None, models: Models) -> None:
        self._sessions = sessions
        self._models = models

    @property
    def client(self) -> Sessions:
        """The functions for the request's owner. Raises SessionsDisabled."""
        if self._sessions is None:
            raise SessionsDisabled("this worker has no sessions: EMBEDDING_SESSIONS is false")
        return self._sessions(auth.owner())

    def create(
        self,
        id: str | None,
        model: str | None,
        *,
        chunk_size: int | None = None,
        chunk_overlap: int | None = None,
        metadata_schema: Mapping[str, str] | None = None,
        qdrant_config: Mapping[str, Any] | None = None,
        sparse_model: str | None = None,
    ) -> Session:
        """A new session of the caller, of models that its key may use. None is each one's default.

        Raises UnknownModel, NotServed, Forbidden, RateLimited, SessionExists and QuotaExceeded.
        """
        client = self.client
        name = self.name_of(model)
        sparse = None if sparse_model is None else self.name_of(sparse_model)
        made = client.create_session(
            id,
            name,
            chunk_size=chunk_size,
            chunk_overlap=chunk_overlap,
            metadata_schema=metadata_schema or {},
            qdrant_config=qdrant_config,
            sparse_model=sparse,
        )
        return msgspec.convert(made, Session)

    def admitted(self, id: str) -> Session:
        """The caller's session, after a check that its key may use the session's models.

        Raises UnknownSession, Forbidden and RateLimited.
        """
        found = msgspec.convert(self.client.get_session(id), Session)
        self._models.of(found.model or None)
        if found.sparse_model not in (None, found.model):
            self._models.of(found.sparse_model or None)
        return found

    def name_of(self, model: str | None) -> str:
        """The session server's name of a model that the caller's key may use, None being the default.

        Raises UnknownModel, Forbidden and RateLimited.
        """
        return served_name(self._models.of(model))
