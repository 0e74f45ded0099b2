"""The API of a service for several providers: `/api/v1/embed`, its batches, and its list of models."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from flask import Blueprint, Response
from msgspec import UNSET, Meta, UnsetType

from embedshare.calls import EmbedResult
from embedshare.errors import UnknownModel
from embedshare.web import body, errors, openapi
from embedshare.web.apis.embed import REFUSED, dumped
from embedshare.web.capabilities import capabilities
from embedshare.web.errors import JSON, ServiceError
from embedshare.web.model_client import ModelClient
from embedshare.web.models import Models
from embedshare.web.routes import Tag


class _Options(msgspec.Struct, kw_only=True):
    model: str | None = None
    dimensions: Annotated[body.Whole, Meta(ge=1)] | None = None


class TextRequest(_Options, kw_only=True):
    """A text to embed; without `model` the default answers. `dimensions`: values kept of the vector."""

    text: str


class TextsRequest(_Options, kw_only=True):
    """Texts to embed."""

    texts: list[str]


class Usage(msgspec.Struct):
    """Tokens that the model read, special ones included."""

    prompt_tokens: int
    total_tokens: int


class ServiceEmbedding(msgspec.Struct):
    """The vector of a text, of length 1."""

    embedding: list[float]
    model: str
    dimensions: int
    usage: Usage


class IndexedEmbedding(msgspec.Struct):
    """The vector of the text at `index`."""

    embedding: list[float]
    index: int


class ServiceEmbeddings(msgspec.Struct):
    """The vectors of texts, of length 1, in their order."""

    embeddings: list[IndexedEmbedding]
    model: str
    dimensions: int
    usage: Usage


class ServiceModel(msgspec.Struct):
    """A model by its id; `provider` is local, openai, ollama or tei. `dimensions` and `max_tokens` are null
    until it was loaded once, and `family` is left out."""

    id: str
    name: str
    provider: str
    dimensions: int | None
    max_tokens: int | None
    capabilities: list[str]
    family: str | UnsetType = UNSET


class ServiceModels(msgspec.Struct):
    """The models of this service."""

    models: list[ServiceModel]


_DECLARED: dict[str, Any] = {"scopes": ("embed",), "form": ServiceError, "tag": Tag.SERVICE}
_TEXT, _TEXTS = '{"text": "a text"}', '{"texts": ["a text"]}'


def blueprint(models: Models) -> Blueprint:
    """`POST /api/v1/embed` and `/api/v1/embed/batch`, also as `generate`; `GET /api/v1/models`."""
    routes = Blueprint("embeddings_service", __name__)
    one, many = msgspec.json.Decoder(TextRequest), msgspec.json.Decoder(TextsRequest)

    @routes.post("/api/v1/embed", **_DECLARED)
    @openapi.describe({200: ServiceEmbedding}, errors=REFUSED, body=TextRequest)
    def embed_text() -> Response:
        """The embedding of one text."""
        asked = body.read(one, _TEXT, untyped=True)
        found = _embedded(models, [asked.text], asked)
        return Response(dumped({"embedding": found.rows[0], **_told(found)}), content_type=JSON)

    @routes.post("/api/v1/generate", **_DECLARED)
    @openapi.describe({200: ServiceEmbedding}, errors=REFUSED, body=TextRequest)
    def generate() -> Response:
        """The same as `/api/v1/embed`."""
        return embed_text()

    @routes.post("/api/v1/embed/batch", **_DECLARED)
    @openapi.describe({200: ServiceEmbeddings}, errors=REFUSED, body=TextsRequest)
    def embed_batch() -> Response:
        """The embeddings of several texts."""
        asked = body.read(many, _TEXTS, untyped=True)
        found = _embedded(models, asked.texts, asked)
        vectors = [{"embedding": row, "index": index} for index, row in enumerate(found.rows)]
        return Response(dumped({"embeddings": vectors, **_told(found)}), content_type=JSON)

    @routes.post("/api/v1/generate/batch", **_DECLARED)
    @openapi.describe({200: ServiceEmbeddings}, errors=REFUSED, body=TextsRequest)
    def generate_batch() -> Response:
        """The same as `/api/v1/embed/batch`."""
        return embed_batch()

    @routes.get("/api/v1/models", **_DECLARED)
    @openapi.describe({200: ServiceModels}, errors=errors.OF_THE_MODEL)
    def service_models() -> Response:
        """The models."""
        return body.answer(ServiceModels([_model(one) for one in models.all()]))

    @routes.get("/api/v1/models/<path:id>", **_DECLARED)
    @openapi.describe({200: ServiceModel}, errors=(UnknownModel, *errors.OF_THE_MODEL))
    def service_model(id: str) -> Response:
        """The model of an id or alias."""
        return body.answer(_model(models.of(id)))

    return routes


def _embedded(models: Models, texts: list[str], asked: _Options) -> EmbedResult:
    dimensions = None if asked.dimensions is None else int(asked.dimensions)
    return models.prompted(asked.model).embed(texts, normalize=True, dimensions=dimensions)


def _told(found: EmbedResult) -> dict[str, Any]:
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return {"model": found.description.model_name, "dimensions": found.rows.shape[1], "usage": usage}


def _model(model: ModelClient) -> ServiceModel:
    known = model.known
    entry = model.entry or {}
    name = entry.get("title") or (model.own_name if known is None else known.model_name)
    return ServiceModel(
        model.own_name, name, entry.get("provider", "local"),
        None if known is None else known.dimension,
        None if known is None else known.max_seq_length,
        capabilities(known),
        UNSET if known is None else known.family,
    )  # fmt: skip
