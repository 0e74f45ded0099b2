"""The routes of a service with sessions, as its clients call them: `/process-file`, `/embeddings`, `/status`,
`/models`."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import msgspec
from flask import Blueprint, Response, request
from msgspec import UNSET, Meta, UnsetType

from embedshare.errors import InvalidInput, SessionExists, UnknownSession
from embedshare.web import body, errors, openapi
from embedshare.web.apis import openai
from embedshare.web.apis.embed import REFUSED, dumped
from embedshare.web.apis.openai import (
    EmbeddingTypes,
    OpenAIEmbeddings,
    OpenAIInput,
    OpenAIModel,
    OpenAIRequest,
)
from embedshare.web.apis.session_files import (
    MAX_FILE_BYTES,
    MULTIPART,
    UPLOADING,
    Places,
    check_form,
    form_metadata,
    process,
)
from embedshare.web.apis.sessions import OF_SESSIONS, SessionVectors, vectors
from embedshare.web.errors import JSON, OpenAIError
from embedshare.web.guards.request_limits import RequestLimits
from embedshare.web.model_client import ModelClient
from embedshare.web.models import Models
from embedshare.web.routes import Tag
from embedshare.web.session_client import CallerSessions, ProcessedFile, Session

#: The session of callers that name none.
DEFAULT_SESSION = "default"
_EXAMPLE = '{"texts": ["a text"]} or {"input": "a text"}'


class FileUpload(msgspec.Struct):
    """A file and its session; without one, it goes to the caller's session `default`, which is created if
    need be, with the default model. `metadata` is a JSON object."""

    file: Annotated[str, Meta(extra_json_schema={"format": "binary"})]
    session_id: str | None = None
    model_name: str | None = None
    metadata: str | None = None


class TextsRequest(msgspec.Struct, kw_only=True):
    """Texts to embed, by the model of a session, or by a model with this name, or by the default one."""

    texts: list[str]
    session_id: str | None = None
    model_name: str | None = None


class _EitherRequest(msgspec.Struct, kw_only=True):
    """Either of them, for one decoding of the body."""

    texts: list[str] | UnsetType = UNSET
    session_id: str | None = None
    model_name: str | None = None
    input: OpenAIInput | UnsetType = UNSET
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[body.Whole, Meta(ge=1)] | None = None
    embedding_types: EmbeddingTypes = None


class ServiceStatus(msgspec.Struct):
    """The session server's state: its uptime, its sessions, documents and chunks, and the uploads that it
    reads now."""

    status: Literal["ok"]
    version: str
    uptime_s: float
    sessions: int
    documents: int
    chunks: int
    uploads: int


class ListedModel(msgspec.Struct):
    """A model; `dimension` and `max_tokens` are null until it was loaded once."""

    name: str
    dimension: int | None
    max_tokens: int | None
    default: bool
    loaded: bool


class ListedModels(msgspec.Struct):
    """The models that the caller may use. `models`: those of sessions, with dense vectors or not loaded yet;
    `object` and `data`, of all models, are for OpenAI's clients."""

    models: list[ListedModel]
    object: Literal["list"]
    data: list[OpenAIModel]


_DECLARED: dict[str, Any] = {"tag": Tag.SESSIONS}


def blueprint(
    sessions: CallerSessions, models: Models, request_limits: RequestLimits, uploads: Places
) -> Blueprint:
    """`POST /process-file`, `POST /embeddings`, `GET /status` and `GET /models`."""
    routes = Blueprint("fastembed", __name__)
    decoder = msgspec.json.Decoder(_EitherRequest)
    created = int(time.time())

    @routes.post("/process-file", scopes=("embed",), large_limit=MAX_FILE_BYTES, **_DECLARED)
    @openapi.describe({200: ProcessedFile}, errors=UPLOADING, body=FileUpload, media_types=(MULTIPART,))
    def process_file() -> Response:
        """Read a file, cut it into chunks, and store their embeddings in a session."""
        check_form()
        file = request.files.get("file")
        if file is None or not file.filename:
            raise InvalidInput("the form must have a `file`, with a file name")
        session, metadata = _session(sessions), form_metadata()
        with uploads:
            return body.answer(process(sessions, session.session_id, file, metadata))

    @routes.post("/embeddings", scopes=("embed",), form=OpenAIError, **_DECLARED)
    @openapi.describe(
        {200: (SessionVectors, OpenAIEmbeddings)},
        errors=(*REFUSED, UnknownSession, *OF_SESSIONS),
        body=(TextsRequest, OpenAIRequest),
    )
    def embeddings() -> Response:
        """The embeddings of `texts`, or of OpenAI's `input`, each answered in its own form."""
        asked = body.read(decoder, _EXAMPLE, untyped=True, replaces_half_pairs=True)
        if isinstance(asked.input, UnsetType) == isinstance(asked.texts, UnsetType):
            raise InvalidInput(f"the body must have one of the fields `texts` and `input`: {_EXAMPLE}")
        if not isinstance(asked.input, UnsetType):
            like = OpenAIRequest(
                asked.input, asked.model, asked.encoding_format, asked.dimensions, asked.embedding_types
            )
            return openai.embeddings(models, like)
        assert not isinstance(asked.texts, UnsetType)  # one of them is there
        if asked.session_id is not None:
            return vectors(sessions, asked.session_id, asked.texts, request_limits)
        return _by_model(models.of(asked.model_name or asked.model), asked.texts)

    @routes.get("/status", scopes=("embed", "search", "metrics"), **_DECLARED)
    @openapi.describe({200: ServiceStatus}, errors=OF_SESSIONS)
    def service_status() -> Response:
        """Whether the session server answers, and what it holds."""
        return body.answer(msgspec.convert({"status": "ok", **sessions.client.status()}, ServiceStatus))

    @routes.get("/models", scopes=("embed", "search"), **_DECLARED)
    @openapi.describe({200: ListedModels}, errors=errors.OF_THE_MODEL)
    def list_models() -> Response:
        """The models of sessions, and all; none is loaded for this."""
        usable = models.all()
        for_sessions = [one for one in usable if one.known is None or "dense" in one.known.outputs]
        names = {name: one for one in usable for name in one.names}
        data = [openai.described(*named, created) for named in names.items()]
        return body.answer(ListedModels(list(map(_listed, for_sessions)), "list", data))

    return routes


def _session(sessions: CallerSessions) -> Session:
    """The session that the form names. Raises InvalidInput if the form names another model than its own."""
    name, model = request.form.get("session_id"), request.form.get("model_name")
    found = _default(sessions) if name is None else sessions.admitted(name)
    if model and model != found.model:
        raise InvalidInput(
            f"the session {found.session_id!r} is not of the model {model[:100]!r}: create one that is, with "
            "POST /sessions"
        )
    return found


def _default(sessions: CallerSessions) -> Session:
    try:
        return sessions.admitted(DEFAULT_SESSION)
    except UnknownSession:
        pass
    try:
        sessions.create(DEFAULT_SESSION, None)
    except SessionExists:
        pass  # another request has created it meanwhile
    return sessions.admitted(DEFAULT_SESSION)


def _by_model(model: ModelClient, texts: list[str]) -> Response:
    found = model.embed(texts)
    told = {"model": found.description.model_name, "dimension": found.rows.shape[1]}
    return Response(dumped({"embeddings": found.rows, **told}), content_type=JSON)


def _listed(model: ModelClient) -> ListedModel:
    known, entry = model.known, model.entry
    return ListedModel(
        model.own_name,
        None if known is None else known.dimension,
        None if known is None else known.max_seq_length,
        entry is None or bool(entry["default"]),
        entry is None or entry["state"] == "ready",
    )
