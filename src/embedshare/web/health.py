"""Is this worker alive, and how is the model that it shares?"""

from __future__ import annotations

from typing import Any, Protocol

from flask import Blueprint


class Observed(Protocol):
    """What these routes ask of the model."""

    def health(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, Any]: ...


def blueprint(model: Observed) -> Blueprint:
    """`/health`, `/embedding/health` and `/embedding/stats`."""
    routes = Blueprint("health", __name__)

    @routes.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/embedding/health")
    def embedding_health() -> tuple[dict[str, Any], int]:
        report = model.health()
        return report, 200 if report["status"] == "ok" else 503

    @routes.get("/embedding/stats")
    def embedding_stats() -> dict[str, Any]:
        return {"status": "ok", **model.stats()}

    return routes
