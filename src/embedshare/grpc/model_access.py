"""Whether a caller's API key may use a model."""

from __future__ import annotations

from typing import Any

from embedshare.errors import Forbidden
from embedshare.grpc.callers import Caller
from embedshare.sessions.embedding import Models


def check(models: Models, caller: Caller, model: str) -> None:
    """Raise Forbidden if the caller's key may not use the model of this name, "" being the default."""
    allowed = caller.principal.models if caller.principal is not None else None
    if allowed is None:
        return
    entries = models.entries()
    if _id_of(entries, model) not in {_id_of(entries, name) for name in allowed if name} - {None}:
        what = f"the model {model[:100]!r}" if model else "the default model"
        raise Forbidden(
            f"the API key may not use {what}; it may use: {', '.join(allowed)}", models=list(allowed)
        )


def _id_of(entries: list[dict[str, Any]], name: str) -> str | None:
    for entry in entries:
        if name in (entry["id"], *entry["aliases"]) or (not name and entry["default"]):
            return str(entry["id"])
    return None
