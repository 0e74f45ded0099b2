"""Ollama's API, its part about embeddings."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from flask import Blueprint, Response
from msgspec import Meta

from embedshare import __version__
from embedshare.errors import InvalidInput, TooLarge, UnknownModel
from embedshare.identity import ModelDescription
from embedshare.web import body, errors, openapi
from embedshare.web.apis.embed import dumped
from embedshare.web.errors import JSON
from embedshare.web.model_client import LATEST, ModelClient
from embedshare.web.routes import Tag

T = TypeVar("T")
_REFUSED: tuple[openapi.Raised, ...] = (InvalidInput, TooLarge, UnknownModel, *errors.OF_THE_MODEL)
#: The family of models, Ollama's word for an architecture. A worker only knows that it embeds.
_FAMILY = "embedshare"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
#: The time until which the model stays loaded, as clients want one: it is never unloaded.
_NEVER = "2318-01-01T00:00:00Z"


class OllamaRequest(msgspec.Struct):
    """A text or several; `keep_alive`, `options` and other fields are ignored.

    Texts longer than the model's longest sequence are truncated, unless `truncate` is false: then they are an
    error.
    """

    model: str
    input: str | list[str] = ""
    truncate: bool | None = True
    dimensions: Annotated[body.Whole, Meta(ge=1)] | None = None


class OllamaEmbeddings(msgspec.Struct):
    """One vector of length 1 for each text, and none for a single empty one; times in nanoseconds."""

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
    """The text's vector; empty for an empty text."""

    embedding: list[float]


class OllamaName(msgspec.Struct):
    """The name of a model, which earlier clients send as `name`; other fields are ignored."""

    model: str | None = None
    name: str | None = None


class OllamaDetails(msgspec.Struct):
    """The model's runtime (`format`) and precision (`quantization_level`).

    A worker does not know the model's number of parameters: `parameter_size` is empty.
    """

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(msgspec.Struct):
    """A name for the model; the digest is its identity.

    `modified_at` is the model's load time, `size` the bytes of memory that loading it took, 0 if unknown.
    """

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaModels(msgspec.Struct):
    """The model's listed names."""

    models: list[OllamaModel]


class OllamaRunning(msgspec.Struct):
    """The model, which is always loaded; `size_vram` is `size` on a GPU and else 0."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int
    context_length: int


class OllamaProcesses(msgspec.Struct):
    """The model, under its own name."""

    models: list[OllamaRunning]


class OllamaShown(msgspec.Struct):
    """A description of the model; it has no modelfile, parameters or template."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, str | int]
    capabilities: list[Literal["embedding"]]
    modified_at: str


class OllamaVersion(msgspec.Struct):
    """This product's version, not Ollama's."""

    version: str


_NAMED = {"model": "all-MiniLM-L6-v2"}
_TIMES = {"total_duration": 4200000, "load_duration": 0, "prompt_eval_count": 8}
#: Bodies and their answers, whose vectors are longer.
_OF_TEXTS = (
    {**_NAMED, "input": ["one model", "many workers"]},
    {**_NAMED, "embeddings": [[0.0132, -0.0417, 0.0908], [-0.0564, 0.0231, 0.0175]], **_TIMES},
)
_OF_PROMPT = {**_NAMED, "prompt": "one model"}, {"embedding": [0.0132, -0.0417, 0.0908]}

_DECLARED: dict[str, Any] = {"scopes": ("embed",), "tag": Tag.OLLAMA}


def blueprint(model_client: ModelClient) -> Blueprint:
    """The routes below `/api`."""
    routes = Blueprint("ollama", __name__)
    of_input = msgspec.json.Decoder(OllamaRequest)
    of_prompt = msgspec.json.Decoder(OllamaPrompt)
    of_name = msgspec.json.Decoder(OllamaName)

    @routes.post("/api/embed", **_DECLARED)
    @openapi.describe(
        {200: OllamaEmbeddings}, errors=_REFUSED, body=OllamaRequest, examples={"texts": _OF_TEXTS}
    )
    def ollama_embed() -> Response:
        """The embeddings of texts, of length 1."""
        began = time.perf_counter_ns()
        asked = _read(of_input, '{"model": "any", "input": "a text"}')
        model_client.check_name(asked.model)
        texts = asked.input if isinstance(asked.input, list) else [asked.input] if asked.input else []
        found = model_client.embed(
            texts,
            normalize=True,
            dimensions=None if asked.dimensions is None else int(asked.dimensions),
            truncate=asked.truncate is not False,
        )
        answer = {
            "model": asked.model,
            "embeddings": found.rows,
            "total_duration": time.perf_counter_ns() - began,
            "load_duration": 0,  # the model server loaded it earlier
            "prompt_eval_count": found.tokens,
        }
        return Response(dumped(answer), content_type=JSON)

    @routes.post("/api/embeddings", **_DECLARED)
    @openapi.describe(
        {200: OllamaEmbedding}, errors=_REFUSED, body=OllamaPrompt, examples={"prompt": _OF_PROMPT}
    )
    def ollama_embeddings() -> Response:
        """The embedding of one text, by Ollama's earlier route."""
        asked = _read(of_prompt, '{"model": "any", "prompt": "a text"}')
        model_client.check_name(asked.model)
        rows = model_client.embed([asked.prompt] if asked.prompt else []).rows
        return Response(dumped({"embedding": rows[0] if len(rows) else []}), content_type=JSON)

    @routes.get("/api/tags", **_DECLARED)
    @openapi.describe({200: OllamaModels}, errors=errors.OF_THE_MODEL)
    def ollama_tags() -> Response:
        """The model's listed names."""
        loaded, described = model_client.loaded, model_client.description
        at, digest, details = _time(loaded.at), described.identity, _details(described)
        return body.answer(
            OllamaModels(
                [OllamaModel(name, name, at, loaded.bytes, digest, details) for name in _tags(model_client)]
            )
        )

    @routes.get("/api/ps", **_DECLARED)
    @openapi.describe({200: OllamaProcesses}, errors=errors.OF_THE_MODEL)
    def ollama_ps() -> Response:
        """The model, which is always loaded."""
        size, described = model_client.loaded.bytes, model_client.description
        name = _tags(model_client)[0]
        on_gpu = not described.device.startswith("cpu")
        running = OllamaRunning(
            name, name, size, described.identity, _details(described), _NEVER, size if on_gpu else 0,
            described.max_seq_length,
        )  # fmt: skip
        return body.answer(OllamaProcesses([running]))

    @routes.post("/api/show", **_DECLARED)
    @openapi.describe({200: OllamaShown}, errors=_REFUSED, body=OllamaName)
    def ollama_show() -> Response:
        """The model's description."""
        asked = _read(of_name, '{"model": "any"}')
        name = asked.name if asked.model is None else asked.model
        if name is None:
            raise InvalidInput('the body must name a model: {"model": "any"}')
        model_client.check_name(name)
        loaded, described = model_client.loaded, model_client.description
        info: dict[str, Any] = {
            "general.architecture": _FAMILY,
            "general.basename": described.model_name,
            f"{_FAMILY}.context_length": described.max_seq_length,
            f"{_FAMILY}.embedding_length": described.dimension,
        }
        return body.answer(
            OllamaShown("", "", "", _details(described), info, ["embedding"], _time(loaded.at))
        )

    @routes.get("/api/version", **_DECLARED)
    @openapi.describe({200: OllamaVersion})
    def ollama_version() -> Response:
        """This product's version."""
        return body.answer(OllamaVersion(__version__))

    return routes


def _read(decoder: msgspec.json.Decoder[T], example: str) -> T:
    """The body in Ollama's reading: JSON whatever its type, since `curl -d` and `fetch` name others."""
    return body.read(decoder, example, any_type=True, replaces_half_pairs=True)


def _tags(model_client: ModelClient) -> list[str]:
    """The names of the model, its own first, each with a tag; a folder's is the last part of its path."""
    own, *aliases = model_client.names
    hub_name = [own] if _HUB_NAME.fullmatch(own) else []
    return list(dict.fromkeys(map(_tagged, [model_client.short_name, *hub_name, *aliases])))


def _time(seconds: float) -> str:
    """RFC 3339, for typed clients."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _tagged(name: str) -> str:
    return name if ":" in name else name + LATEST


def _details(described: ModelDescription) -> OllamaDetails:
    return OllamaDetails("", described.runtime, _FAMILY, [_FAMILY], "", described.dtype)
