"""Sessions over HTTP: each has a model, a way to cut documents into chunks, and the documents' vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from flask import Blueprint, Response
from msgspec import Meta
from werkzeug.exceptions import UnsupportedMediaType

from embedshare.errors import (
    InvalidInput,
    NotServed,
    QuotaExceeded,
    SessionExists,
    SessionsDisabled,
    SessionServerUnavailable,
    TooLarge,
    UnknownModel,
    UnknownSession,
)
from embedshare.telemetry import usage
from embedshare.web import body, errors, openapi, pages
from embedshare.web.apis.embed import dumped
from embedshare.web.errors import JSON
from embedshare.web.guards.request_limits import RequestLimits
from embedshare.web.routes import OPEN, Tag
from embedshare.web.session_client import CallerSessions, FieldType, FoundChunk, Session

#: A session's id: it is a part of paths. Python's $ alone would take a newline at the end.
SessionId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._~-]*$(?!\n)", max_length=128)]
_Size = Annotated[body.Whole, Meta(ge=1, le=1_000_000)]
_Overlap = Annotated[body.Whole, Meta(ge=0, le=1_000_000)]


class QdrantConfig(msgspec.Struct, omit_defaults=True):
    """A Qdrant server for the vectors, in place of the session server's own store. Its URL must be one of
    EMBEDDING_SESSIONS_QDRANT_URLS."""

    url: str
    collection: str = ""
    api_key: str = ""
    prefer_grpc: bool = False


class SessionRequest(msgspec.Struct):
    """A new session. Without `session_id` it gets one, without `model` the default model is its own.

    `chunk_size` (512 by default, or the model's longest sequence if that is shorter) and `chunk_overlap` (50)
    are tokens. `metadata_schema`: the types of the documents' metadata fields, by which a search can filter.
    `model_name` is another name of `model`. With a `sparse_model` its chunks have sparse vectors too, for
    sparse and hybrid searches; it may be `model` itself, if that gives both.
    """

    session_id: SessionId | None = None
    model: str | None = None
    model_name: str | None = None
    chunk_size: _Size | None = None
    chunk_overlap: _Overlap | None = None
    metadata_schema: dict[str, FieldType] = {}
    qdrant_config: QdrantConfig | None = None
    sparse_model: str | None = None


class SessionChange(msgspec.Struct):
    """Other sizes of chunks, while the session has no documents."""

    chunk_size: _Size | None = None
    chunk_overlap: _Overlap | None = None


class SessionList(msgspec.Struct):
    """The caller's sessions, oldest first."""

    sessions: list[Session]


class SessionTexts(msgspec.Struct):
    """Texts to embed by the session's model."""

    texts: list[str]


class SessionVectors(msgspec.Struct):
    """One vector for each text, in their order."""

    embeddings: list[list[float]]
    model: str
    dimension: int


class SessionQuery(msgspec.Struct):
    """A query for a session's documents.

    `filters`: values of metadata fields that the session's schema declares. `mode`: hybrid by default in a
    session with a sparse model, else dense. `score_threshold`: results of a dense search have a higher score.
    `rerank` names a model that scores pairs: the best `rerank_candidates` (4 for each result up to 100,
    unless it says otherwise) are ordered by it.
    """

    query: Annotated[str, Meta(pattern=r"\S")]
    top_k: Annotated[body.Whole, Meta(ge=1, le=1000)] = 10
    filters: dict[str, Any] | None = None
    score_threshold: Annotated[float, Meta(ge=-1, le=1)] | None = None
    mode: Literal["dense", "sparse", "hybrid"] | None = None
    rerank: str | None = None
    rerank_candidates: Annotated[body.Whole, Meta(ge=1, le=1000)] | None = None


class FoundChunks(msgspec.Struct):
    """The best chunks, best first; of equal ones in the order of their ids, or of the first stage."""

    results: list[FoundChunk]


OF_SESSIONS = (SessionsDisabled, SessionServerUnavailable)
SENT = (InvalidInput, TooLarge, UnsupportedMediaType)
CREATED = (*SENT, NotServed, UnknownModel, SessionExists, QuotaExceeded, *OF_SESSIONS)
DECLARED: dict[str, Any] = {"scopes": ("embed",), "tag": Tag.SESSIONS}


def blueprint(sessions: CallerSessions, request_limits: RequestLimits) -> Blueprint:
    """`/sessions` and its subpaths but `files`, and the page that a browser gets at `/sessions`."""
    routes = Blueprint("sessions", __name__)
    of_session, of_change, of_texts, of_query = map(
        msgspec.json.Decoder, (SessionRequest, SessionChange, SessionTexts, SessionQuery)
    )

    @routes.get("/sessions.html", scopes=OPEN, tag=Tag.SESSIONS)
    @openapi.describe({200: {"text/html": str}, 304: {}})
    def sessions_page() -> Response:
        """A page to create sessions, add documents and search them; browsers get it at `/sessions` too."""
        return pages.page("sessions")

    @routes.post("/sessions", **DECLARED)
    @openapi.describe(
        {201: Session},
        errors=(
            *SENT,
            NotServed,
            UnknownModel,
            SessionExists,
            QuotaExceeded,
            *OF_SESSIONS,
            *errors.OF_THE_MODEL,
        ),
        body=SessionRequest,
    )
    def create_session() -> tuple[Response, int, dict[str, str]]:
        """Create a session."""
        asked = body.read(of_session, '{"model": "all-MiniLM-L6-v2", "chunk_size": 256}')
        session = sessions.create(
            asked.session_id,
            asked.model_name if asked.model is None else asked.model,
            chunk_size=_whole(asked.chunk_size),
            chunk_overlap=_whole(asked.chunk_overlap),
            metadata_schema=asked.metadata_schema,
            qdrant_config=_settings(asked.qdrant_config),
            sparse_model=asked.sparse_model,
        )
        return body.answer(session), 201, {"Location": f"/sessions/{session.session_id}"}

    @routes.get("/sessions", **DECLARED)
    @openapi.describe({200: SessionList}, errors=OF_SESSIONS)
    def list_sessions() -> Response:
        """The sessions of the caller's key; a browser's visit gets the page."""
        return body.answer(SessionList(msgspec.convert(sessions.client.list_sessions(), list[Session])))

    @routes.get("/sessions/<session>", **DECLARED)
    @openapi.describe({200: Session}, errors=(UnknownSession, *OF_SESSIONS))
    def show_session(session: str) -> Response:
        """A session and the number of its documents and chunks."""
        return body.answer(msgspec.convert(sessions.client.get_session(session), Session))

    @routes.patch("/sessions/<session>", **DECLARED)
    @openapi.describe(
        {200: Session}, errors=(*SENT, UnknownSession, SessionExists, *OF_SESSIONS), body=SessionChange
    )
    def change_session(session: str) -> Response:
        """Change the sizes of chunks of a session without documents."""
        asked = body.read(of_change, '{"chunk_size": 256}')
        size, overlap = _whole(asked.chunk_size), _whole(asked.chunk_overlap)
        changed = sessions.client.update_session(session, chunk_size=size, chunk_overlap=overlap)
        return body.answer(msgspec.convert(changed, Session))

    @routes.delete("/sessions/<session>", **DECLARED)
    @openapi.describe({204: {}}, errors=(UnknownSession, *OF_SESSIONS))
    def delete_session(session: str) -> tuple[str, int]:
        """Delete a session, its documents and their vectors."""
        sessions.client.destroy_session(session)
        return "", 204

    @routes.post("/sessions/<session>/embeddings", **DECLARED)
    @openapi.describe(
        {200: SessionVectors},
        errors=(*SENT, UnknownSession, UnknownModel, *OF_SESSIONS, *errors.OF_THE_MODEL),
        body=SessionTexts,
    )
    def session_embeddings(session: str) -> Response:
        """The embeddings of texts by a session's model."""
        asked = body.read(of_texts, '{"texts": ["a text"]}')
        return vectors(sessions, session, asked.texts, request_limits)

    @routes.post("/sessions/<session>/search", scopes=("embed", "search"), tag=Tag.SESSIONS)
    @openapi.describe(
        {200: FoundChunks},
        errors=(*SENT, NotServed, UnknownSession, UnknownModel, *OF_SESSIONS, *errors.OF_THE_MODEL),
        body=SessionQuery,
    )
    def search_session(session: str) -> Response:
        """The chunks of a session's documents that fit a query best."""
        asked = body.read(of_query, '{"query": "what is asked"}')
        request_limits.check([asked.query], "queries")
        sessions.admitted(session)
        rerank = None if asked.rerank is None else sessions.name_of(asked.rerank)
        usage.of_texts(1)
        found = sessions.client.search(
            session,
            asked.query,
            int(asked.top_k),
            asked.filters,
            asked.score_threshold,
            mode=asked.mode or "",
            rerank=rerank,
            rerank_candidates=_whole(asked.rerank_candidates),
        )
        return body.answer(FoundChunks(msgspec.convert(found, list[FoundChunk], strict=False)))

    return routes


def vectors(
    sessions: CallerSessions, session: str, texts: Sequence[str], request_limits: RequestLimits
) -> Response:
    """The answer with the vectors of texts by a session's model."""
    request_limits.check(texts)
    found = sessions.admitted(session)
    usage.of_texts(len(texts))
    rows = sessions.client.get_embeddings(session, texts)
    told = {"embeddings": rows, "model": found.model, "dimension": found.dimension}
    return Response(dumped(told), content_type=JSON)


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _settings(config: QdrantConfig | None) -> dict[str, Any] | None:
    return None if config is None else msgspec.structs.asdict(config)
