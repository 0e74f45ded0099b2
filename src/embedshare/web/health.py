"""Is this worker alive, and how is the model that it shares?"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec
from flask import Blueprint

from embedshare.web import errors, openapi


class Observed(Protocol):
    """What these routes ask of the model."""

    def health(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, Any]: ...


class Alive(msgspec.Struct):
    """The worker answers."""

    status: Literal["ok"]


class ModelHealth(msgspec.Struct):
    """The model answers."""

    status: Literal["ok"]
    embedding_server: Literal["connected", "disconnected"]
    ipc_enabled: bool
    state: str
    active_operations: int | msgspec.UnsetType = msgspec.UNSET


class DegradedHealth(msgspec.Struct):
    """The model server does not answer, and why."""

    status: Literal["degraded"]
    embedding_server: Literal["disconnected"]
    error: str
    ipc_enabled: Literal[False]
    state: str


class Stats(msgspec.Struct):
    """What the model has done since it was loaded; times in seconds."""

    status: Literal["ok"]
    ipc_mode: bool
    server_address: str
    state: str
    active_operations: int
    total_requests: int
    successful_requests: int
    failed_requests: int
    uptime: float


def blueprint(model: Observed) -> Blueprint:
    """`/health`, `/embedding/health` and `/embedding/stats`."""
    routes = Blueprint("health", __name__)

    @routes.get("/health")
    @openapi.describe({200: Alive})
    def health() -> dict[str, str]:
        """Is this worker alive?"""
        return {"status": "ok"}

    @routes.get("/embedding/health")
    @openapi.describe({200: ModelHealth, 503: DegradedHealth})
    def embedding_health() -> tuple[dict[str, Any], int]:
        """How is the model?"""
        report = model.health()
        return report, 200 if report["status"] == "ok" else 503

    @routes.get("/embedding/stats")
    @openapi.describe({200: Stats}, errors=errors.OF_THE_MODEL)
    def embedding_stats() -> dict[str, Any]:
        """What has the model done?"""
        return {"status": "ok", **model.stats()}

    return routes
