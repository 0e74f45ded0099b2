"""Ollama's API, as far as it is about embeddings."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from flask import Blueprint, Response
from msgspec import Meta

from embedshare import __version__
from embedshare.errors import UnknownModel
from embedshare.identity import ModelDescription
from embedshare.web import body, errors, openapi
from embedshare.web.embed import REFUSED, dumped
from embedshare.web.errors import JSON
from embedshare.web.served import LATEST, Served

T = TypeVar("T")


class OllamaRequest(msgspec.Struct):
    """A text or several; `keep_alive`, `options` and other fields are ignored.

    Longer texts than the model's longest sequence are cut, unless `truncate` is false: then they are an
    error.
    """

    model: str
    input: str | list[str] = ""
    truncate: bool | None = True
    dimensions: Annotated[body.Whole, Meta(ge=1)] | None = None


class OllamaEmbeddings(msgspec.Struct):
    """One vector of length 1 for each text, and none for an empty one that came alone; times in
    nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaPrompt(msgspec.Struct):
    """A text; other fields are ignored."""

    model: str
    prompt: str = ""


class OllamaEmbedding(msgspec.Struct):
    """The text's vector; none of an empty text."""

    embedding: list[float]


class OllamaName(msgspec.Struct):
    """The name of a model; other fields are ignored."""

    model: str


class OllamaDetails(msgspec.Struct):
    """What runs the model, and what it computes in."""

    format: str
    quantization_level: str


class OllamaModel(msgspec.Struct):
    """A name that the model can be asked for by; the digest is its identity."""

    name: str
    model: str
    digest: str
    details: OllamaDetails


class OllamaModels(msgspec.Struct):
    """The names that the model is listed by."""

    models: list[OllamaModel]


class OllamaShown(msgspec.Struct):
    """What there is to tell of the model."""

    details: OllamaDetails
    model_info: dict[str, str | int]
    capabilities: list[Literal["embedding"]]


class OllamaVersion(msgspec.Struct):
    """This product's version, not Ollama's."""

    version: str


def blueprint(served: Served) -> Blueprint:
    """What is below `/api`."""
    routes = Blueprint("ollama", __name__)
    of_input = msgspec.json.Decoder(OllamaRequest)
    of_prompt = msgspec.json.Decoder(OllamaPrompt)
    of_name = msgspec.json.Decoder(OllamaName)

    @routes.post("/api/embed")
    @openapi.describe({200: OllamaEmbeddings}, errors=(*REFUSED, UnknownModel), body=OllamaRequest)
    def ollama_embed() -> Response:
        """The embeddings of texts, of length 1."""
        began = time.perf_counter_ns()
        asked = _read(of_input, '{"model": "any", "input": "a text"}')
        served.check_name(asked.model)
        texts = asked.input if isinstance(asked.input, list) else [asked.input] if asked.input else []
        found = served.embed(
            texts,
            normalize=True,
            dimensions=None if asked.dimensions is None else int(asked.dimensions),
            truncate=asked.truncate is not False,
        )
        answer = {
            "model": asked.model,
            "embeddings": found.rows,
            "total_duration": time.perf_counter_ns() - began,
            "load_duration": 0,  # the model server has loaded it long before
            "prompt_eval_count": found.tokens,
        }
        return Response(dumped(answer), content_type=JSON)

    @routes.post("/api/embeddings")
    @openapi.describe({200: OllamaEmbedding}, errors=(*REFUSED, UnknownModel), body=OllamaPrompt)
    def ollama_embeddings() -> Response:
        """The embedding of one text, by Ollama's earlier route."""
        asked = _read(of_prompt, '{"model": "any", "prompt": "a text"}')
        served.check_name(asked.model)
        rows = served.embed([asked.prompt] if asked.prompt else []).rows
        return Response(dumped({"embedding": rows[0] if len(rows) else []}), content_type=JSON)

    @routes.get("/api/tags")
    @openapi.describe({200: OllamaModels}, errors=errors.OF_THE_MODEL)
    def ollama_tags() -> Response:
        """The names that the model is listed by."""
        described, own = served.description, served.description.model_name
        tagged = [_tagged(served.short_name if name == own else name) for name in served.names]
        return _json(
            OllamaModels(
                [OllamaModel(name, name, described.identity, _details(described)) for name in tagged]
            )
        )

    @routes.post("/api/show")
    @openapi.describe({200: OllamaShown}, errors=(*REFUSED, UnknownModel), body=OllamaName)
    def ollama_show() -> Response:
        """What there is to tell of the model."""
        served.check_name(_read(of_name, '{"model": "any"}').model)
        described = served.description
        info: dict[str, Any] = {
            "general.architecture": "embedshare",
            "general.basename": described.model_name,
            "embedshare.context_length": described.max_seq_length,
            "embedshare.embedding_length": described.dimension,
        }
        return _json(OllamaShown(_details(described), info, ["embedding"]))

    @routes.get("/api/version")
    @openapi.describe({200: OllamaVersion})
    def ollama_version() -> Response:
        """This product's version."""
        return _json(OllamaVersion(__version__))

    return routes


def _read(decoder: msgspec.json.Decoder[T], example: str) -> T:
    """The body as Ollama reads it."""
    return body.read(decoder, example, untyped=True, replaces_half_pairs=True)


def _tagged(name: str) -> str:
    return name if ":" in name else name + LATEST


def _details(described: ModelDescription) -> OllamaDetails:
    return OllamaDetails(described.runtime, described.dtype)


def _json(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), content_type=JSON)
