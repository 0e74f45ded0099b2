"""The health of this worker and of the model that it shares, and the model's description."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec
from flask import Blueprint, Response

from embedshare import __version__
from embedshare.errors import EmbedshareError
from embedshare.identity import ModelDescription
from embedshare.web import errors, openapi
from embedshare.web.errors import TeiError
from embedshare.web.models import Models
from embedshare.web.routes import OPEN, Tag

#: A dependency's state: `connected`, `disconnected`, `off`, `unknown`.
Dependencies = Mapping[str, Callable[[], str]]


class Observed(Protocol):
    """The model's functions that these routes use."""

    def health(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, Any]: ...
    def describe(self) -> ModelDescription: ...


class Alive(msgspec.Struct):
    """The worker answers; its dependencies' states at their last use.

    Without its model server a worker answers by a local model, and without its database by the last known
    values.
    """

    status: Literal["ok"]
    service: Literal["embedshare"]
    version: str
    uptime_seconds: float
    dependencies: dict[str, str]


class ModelInfo(msgspec.Struct):
    """The model that answers.

    `prompts` by their names; `similarity` is the function that its vectors are made for; `identity` is the
    SHA-256 of everything that its vectors depend on: vectors of one identity can be compared. `family`:
    embedding, cross-encoder, sparse or multi-vector; `outputs`: dense, sparse, multi-vector, scores.
    """

    status: Literal["loaded"]
    model_name: str
    identity: str
    dimension: int
    max_seq_length: int
    device: str
    dtype: str
    runtime: str
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity: str
    uptime_seconds: float
    family: str
    outputs: list[str]
    modalities: list[str]
    labels: list[str]
    activation: str | None
    vocabulary: int | None
    token_dimension: int | None
    max_active_dims: int | None


class ServedHealth(msgspec.Struct, omit_defaults=True):
    """One of the server's models: `service` is whether its remote provider is asked, as the state of its
    breaker (closed: it is)."""

    state: str
    provider: str
    service: str | None = None
    error: str | None = None


class ModelHealth(msgspec.Struct):
    """The model answers. `models` and `cache`: the server's models and the levels of its cache of vectors."""

    status: Literal["ok"]
    embedding_server: Literal["connected", "disconnected"]
    ipc_enabled: bool
    state: str
    active_operations: int | msgspec.UnsetType = msgspec.UNSET
    models: dict[str, ServedHealth] | msgspec.UnsetType = msgspec.UNSET
    cache: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class DegradedHealth(msgspec.Struct):
    """The model server does not answer, and the reason."""

    status: Literal["degraded"]
    embedding_server: Literal["disconnected"]
    error: str
    ipc_enabled: Literal[False]
    state: str


class Stats(msgspec.Struct):
    """The model's work since it was loaded; times in seconds."""

    status: Literal["ok"]
    ipc_mode: bool
    server_address: str
    state: str
    active_operations: int
    total_requests: int
    successful_requests: int
    failed_requests: int
    uptime: float


_RUNNING = (
    "embedshare is running\n\n/docs       its routes\n/dashboard  what it does\n/search     a web search\n"
)


def blueprint(model: Observed, dependencies: Dependencies, models: Models) -> Blueprint:
    """`GET /`, `/health`, `/embedding/health`, `/embedding/stats` and `/model/info`.

    `dependencies` are called in each `/health`: they return known states and wait for nothing. So do the last
    known `models`, which admit a request to the description of the default one.
    """
    routes = Blueprint("health", __name__)
    born = time.monotonic()

    @routes.get("/", scopes=OPEN, form=TeiError, tag=Tag.HEALTH)
    @openapi.describe({200: {"text/plain": str}})
    def running() -> Response:
        """Whether a server answers here; Ollama's clients ask by GET or HEAD."""
        return Response(_RUNNING, content_type="text/plain; charset=utf-8")

    @routes.get("/health", scopes=OPEN, tag=Tag.HEALTH)
    @openapi.describe({200: Alive})
    def health() -> dict[str, Any]:
        """Whether this worker is alive."""
        known = {name: state() for name, state in dependencies.items()} | _services(models.last_entries)
        alive = Alive("ok", "embedshare", __version__, round(time.monotonic() - born, 3), known)
        return msgspec.structs.asdict(alive)

    @routes.get("/embedding/health", scopes=("embed", "metrics"), tag=Tag.HEALTH)
    @openapi.describe({200: ModelHealth, 503: DegradedHealth})
    def embedding_health() -> tuple[dict[str, Any], int]:
        """The health of the model."""
        report = model.health()
        if report["embedding_server"] == "connected":
            report |= _served(model, models)
        return report, 200 if report["status"] == "ok" else 503

    @routes.get("/embedding/stats", scopes=("metrics",), tag=Tag.HEALTH)
    @openapi.describe({200: Stats}, errors=errors.OF_THE_MODEL)
    def embedding_stats() -> dict[str, Any]:
        """The model's work so far."""
        return {"status": "ok", **model.stats()}

    @routes.get("/model/info", scopes=("embed",), tag=Tag.HEALTH)
    @openapi.describe({200: ModelInfo}, errors=errors.OF_THE_MODEL)
    def model_info() -> dict[str, Any]:
        """The model that answers."""
        models.of(None)
        loaded_s = model.stats()["uptime"]  # raises if no model answers now
        described = msgspec.structs.asdict(model.describe())
        similarity = described.pop("similarity_fn_name")
        return {"status": "loaded", "uptime_seconds": loaded_s, "similarity": similarity, **described}

    return routes


def _services(entries: list[dict[str, Any]]) -> dict[str, str]:
    """The remote providers, which are connected while one of their models is asked."""
    found: dict[str, set[str]] = {}
    for entry in entries:
        if entry.get("provider", "local") != "local":
            found.setdefault(entry["provider"], set()).add(_connection(entry))
    order = ("connected", "disconnected", "unknown")
    return {provider: next(one for one in order if one in states) for provider, states in found.items()}


def _connection(entry: dict[str, Any]) -> str:
    service = entry["service"]
    if service is None:
        return "disconnected" if entry["state"] == "failed" else "unknown"
    return "connected" if service["breaker"] == "closed" else "disconnected"


def _served(model: Observed, models: Models) -> dict[str, Any]:
    """The states of the server's models and of its cache's levels; nothing if it does not tell them."""
    try:
        entries, cache = models.usable_entries, model.stats()["cache"]
    except EmbedshareError:
        return {}
    told = {entry["id"]: msgspec.to_builtins(_health_of(entry)) for entry in entries}
    return {"models": told, "cache": _levels(cache)}


def _health_of(entry: dict[str, Any]) -> ServedHealth:
    service = entry.get("service") or {}
    error = service.get("error") or entry.get("error")
    state, provider = entry.get("state", "unknown"), entry.get("provider", "local")
    return ServedHealth(state, provider, service.get("breaker"), error)


def _levels(cache: dict[str, Any]) -> dict[str, str]:
    """The cache's levels that a server has: `connected`, or `disconnected` while it is not asked."""
    if not cache:
        return {}
    shared = {
        name: level for name, level in cache.items() if isinstance(level, dict) and "connected" in level
    }
    states = {name: "connected" if level["connected"] else "disconnected" for name, level in shared.items()}
    return {"memory": "connected"} | states
