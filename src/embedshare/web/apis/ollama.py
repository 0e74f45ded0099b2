"""Ollama's API, its part about embeddings."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone
from typing import Annotated, Any, TypeVar

import msgspec
from flask import Blueprint, Response
from msgspec import Meta

from embedshare import __version__
from embedshare.errors import InvalidInput, TooLarge, UnknownModel
from embedshare.identity import ModelDescription
from embedshare.web import body, errors, openapi
from embedshare.web.apis.embed import dumped
from embedshare.web.capabilities import capabilities
from embedshare.web.errors import JSON
from embedshare.web.guards import auth
from embedshare.web.model_client import LATEST, Loaded, ModelClient
from embedshare.web.models import Models
from embedshare.web.routes import Tag

T = TypeVar("T")
_REFUSED: tuple[openapi.Raised, ...] = (InvalidInput, TooLarge, UnknownModel, *errors.OF_THE_MODEL)
#: The family of models, Ollama's word for an architecture. A worker only knows that it embeds.
_FAMILY = "embedshare"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
#: The time until which a model stays loaded that is never unloaded, as clients want one.
_NEVER = "2318-01-01T00:00:00Z"
#: Go's durations, in which Ollama's clients give `keep_alive`: a sign, and numbers with units.
_DURATION = re.compile(r"([+-]?)((?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h)?)+)")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)?")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
#: The longest time that is not for ever, in seconds.
_LONGEST_S = 1e9


class OllamaRequest(msgspec.Struct):
    """A text or several; `options` and other fields are ignored.

    No text loads the model. `keep_alive`: time without a call after which the model is unloaded, in seconds
    or as "5m", negative for never; no text and 0 unload it. Where keys are required it needs the scope
    `admin`, and is ignored beside texts without it. Texts longer than the model's longest sequence are
    truncated, unless `truncate` is false: then they are an error.
    """

    model: str
    input: str | list[str] = ""
    truncate: bool | None = True
    dimensions: Annotated[body.Whole, Meta(ge=1)] | None = None
    keep_alive: float | str | None = None


class OllamaEmbeddings(msgspec.Struct):
    """One vector of length 1 for each text, and none for a single empty one; times in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaPrompt(msgspec.Struct):
    """A text; `keep_alive` as in OllamaRequest, other fields are ignored."""

    model: str
    prompt: str = ""
    keep_alive: float | str | None = None


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

    `modified_at` is the model's load time, `size` the bytes of memory that loading it took, 0 if unknown. The
    digest of a model that was never loaded is empty.
    """

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaModels(msgspec.Struct):
    """The models' listed names."""

    models: list[OllamaModel]


class OllamaRunning(msgspec.Struct):
    """A loaded model; `size_vram` is `size` on a GPU and else 0."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int
    context_length: int


class OllamaProcesses(msgspec.Struct):
    """The loaded models, each under its own name."""

    models: list[OllamaRunning]


class OllamaShown(msgspec.Struct):
    """A description of the model; it has no modelfile, parameters or template."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, str | int]
    capabilities: list[str]
    """Ollama's word `embedding`, or what this product calls it."""

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

_UNKNOWN = OllamaDetails("", "", _FAMILY, [_FAMILY], "", "")
_DECLARED: dict[str, Any] = {"scopes": ("embed",), "tag": Tag.OLLAMA}


def blueprint(models: Models) -> Blueprint:
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
        model_client, keep_alive_s = models.prompted(asked.model), _seconds(asked.keep_alive)
        texts = asked.input if isinstance(asked.input, list) else [asked.input] if asked.input else []
        dimensions = None if asked.dimensions is None else int(asked.dimensions)
        rows, tokens = _embedded(
            models, model_client, texts, keep_alive_s, dimensions, truncate=asked.truncate is not False
        )
        answer = {
            "model": asked.model,
            "embeddings": rows,
            "total_duration": time.perf_counter_ns() - began,
            "load_duration": 0,  # part of the total, which a worker does not divide
            "prompt_eval_count": tokens,
        }
        return Response(dumped(answer), content_type=JSON)

    @routes.post("/api/embeddings", **_DECLARED)
    @openapi.describe(
        {200: OllamaEmbedding}, errors=_REFUSED, body=OllamaPrompt, examples={"prompt": _OF_PROMPT}
    )
    def ollama_embeddings() -> Response:
        """The embedding of one text, by Ollama's earlier route."""
        asked = _read(of_prompt, '{"model": "any", "prompt": "a text"}')
        texts, keep_alive_s = [asked.prompt] if asked.prompt else [], _seconds(asked.keep_alive)
        rows, _ = _embedded(models, models.prompted(asked.model), texts, keep_alive_s, None, normalize=None)
        return Response(dumped({"embedding": rows[0] if len(rows) else []}), content_type=JSON)

    @routes.get("/api/tags", **_DECLARED)
    @openapi.describe({200: OllamaModels}, errors=errors.OF_THE_MODEL)
    def ollama_tags() -> Response:
        """The models' listed names."""
        return body.answer(OllamaModels([listed for one in models.all() for listed in _listed(one)]))

    @routes.get("/api/ps", **_DECLARED)
    @openapi.describe({200: OllamaProcesses}, errors=errors.OF_THE_MODEL)
    def ollama_ps() -> Response:
        """The loaded models."""
        running = [found for one in models.all() if (found := _running(one)) is not None]
        return body.answer(OllamaProcesses(running))

    @routes.post("/api/show", **_DECLARED)
    @openapi.describe({200: OllamaShown}, errors=_REFUSED, body=OllamaName)
    def ollama_show() -> Response:
        """The model's description."""
        asked = _read(of_name, '{"model": "any"}')
        name = asked.name if asked.model is None else asked.model
        if name is None:
            raise InvalidInput('the body must name a model: {"model": "any"}')
        model_client = models.of(name)
        described, loaded = model_client.description, model_client.loaded
        info: dict[str, Any] = {
            "general.architecture": _FAMILY,
            "general.basename": described.model_name,
            f"{_FAMILY}.context_length": described.max_seq_length,
            f"{_FAMILY}.embedding_length": described.dimension,
        }
        can = ["embedding" if one == "embeddings" else one for one in capabilities(described)]
        return body.answer(OllamaShown("", "", "", _details(described), info, can, _time(loaded)))

    @routes.get("/api/version", **_DECLARED)
    @openapi.describe({200: OllamaVersion})
    def ollama_version() -> Response:
        """This product's version."""
        return body.answer(OllamaVersion(__version__))

    return routes


def _read(decoder: msgspec.json.Decoder[T], example: str) -> T:
    """The body in Ollama's reading: JSON whatever its type, since `curl -d` and `fetch` name others."""
    return body.read(decoder, example, any_type=True, replaces_half_pairs=True)


def _embedded(
    models: Models,
    model_client: ModelClient,
    texts: list[str],
    keep_alive_s: float | None,
    dimensions: int | None,
    *,
    normalize: bool | None = True,
    truncate: bool = True,
) -> tuple[Any, int]:
    """The vectors and their tokens; none for no texts, which load or unload the model."""
    if not texts and keep_alive_s == 0:
        auth.require("admin")
        models.unload(model_client)
        return [], 0
    found = model_client.embed(texts, normalize=normalize, dimensions=dimensions, truncate=truncate)
    if keep_alive_s is not None and auth.is_allowed("admin"):
        models.keep_alive(model_client, keep_alive_s)
    elif not texts:
        model_client.manage("load")
    return found.rows, found.tokens


def _seconds(keep_alive: float | str | None) -> float | None:
    """A number of seconds, or Go's form of a duration, as "1h30m"; -1 for negative ones, which is never.

    Raises InvalidInput.
    """
    if keep_alive is None or keep_alive == "":
        return None
    if isinstance(keep_alive, str):
        found = _DURATION.fullmatch(keep_alive)
        if found is None:
            raise InvalidInput(f"keep_alive is {keep_alive[:40]!r}; it must be seconds, or such as 5m or -1")
        parts = _PART.findall(found[2])
        seconds = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
        keep_alive = -1.0 if found[1] == "-" else seconds
    return -1.0 if keep_alive < 0 or keep_alive > _LONGEST_S else float(keep_alive)


def _listed(model_client: ModelClient) -> list[OllamaModel]:
    loaded, described = model_client.loaded, model_client.known
    at, size = _time(loaded), 0 if loaded is None else loaded.bytes
    digest, details = ("", _UNKNOWN) if described is None else (described.identity, _details(described))
    return [OllamaModel(name, name, at, size, digest, details) for name in _tags(model_client)]


def _running(model_client: ModelClient) -> OllamaRunning | None:
    loaded, described = model_client.loaded, model_client.known
    if loaded is None or described is None:
        return None
    name, expires = _tags(model_client)[0], model_client.expires_at
    on_gpu = not described.device.startswith("cpu")
    return OllamaRunning(
        name, name, loaded.bytes, described.identity, _details(described),
        _NEVER if expires is None else _rfc3339(expires), loaded.bytes if on_gpu else 0,
        described.max_seq_length,
    )  # fmt: skip


def _tags(model_client: ModelClient) -> list[str]:
    """The names of the model, its own first, each with a tag; a folder's is the last part of its path."""
    own, *aliases = model_client.names
    hub_name = [own] if _HUB_NAME.fullmatch(own) else []
    return list(dict.fromkeys(map(_tagged, [model_client.short_name, *hub_name, *aliases])))


def _time(loaded: Loaded | None) -> str:
    """When a model was loaded."""
    return _rfc3339(0.0 if loaded is None else loaded.at)


def _rfc3339(seconds: float) -> str:
    """A Unix time in RFC 3339, for typed clients."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _tagged(name: str) -> str:
    return name if ":" in name else name + LATEST


def _details(described: ModelDescription) -> OllamaDetails:
    return OllamaDetails("", described.runtime, _FAMILY, [_FAMILY], "", described.dtype)
