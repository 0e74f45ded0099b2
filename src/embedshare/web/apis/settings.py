"""The settings that can change at run time: their values, changes and audit."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Protocol

import msgspec
from flask import Blueprint, g, jsonify, request
from msgspec import Meta
from werkzeug.exceptions import UnsupportedMediaType
from werkzeug.routing import BaseConverter

from embedshare.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    InvalidInput,
    InvalidSetting,
    OutOfMemory,
    ServerUnavailable,
    SettingsFixed,
    SwapRefused,
    TooLarge,
    UnknownSetting,
)
from embedshare.settings_store import runtime_settings
from embedshare.settings_store.current import SettingsSnapshot
from embedshare.web import body, openapi
from embedshare.web.routes import Tag

#: The most changes that `/settings/audit` returns, and the default.
MOST_CHANGES, CHANGES = 1000, 100
_CHANGING = (
    UnknownSetting, SettingsFixed, InvalidSetting, DatabaseUnavailable, SwapRefused, ServerUnavailable,
    OutOfMemory, DeadlineExceeded,
)  # fmt: skip
_SENT = (InvalidInput, TooLarge, UnsupportedMediaType)


class Changes(Protocol):
    """The stored settings' functions that these routes use."""

    @property
    def live(self) -> Any: ...
    def change(self, given: dict[str, Any], who: str) -> SettingsSnapshot: ...
    def delete(self, key: str, who: str) -> SettingsSnapshot: ...
    def audit(self, limit: int) -> list[Any]: ...
    def notes(self, changed: set[str]) -> dict[str, str]: ...


class SettingRequest(msgspec.Struct):
    """A setting and its value: a text, or a value of the setting's type."""

    key: str
    value: Any


class BulkRequest(msgspec.Struct):
    """Values by setting: all of them are applied, or none."""

    settings: Annotated[dict[str, Any], Meta(min_length=1)]


class SettingsAnswer(msgspec.Struct):
    """The values in force, and their source."""

    settings: dict[str, Any]
    supported_keys: list[str]
    source: Literal["environment", "database"]
    version: int
    notes: dict[str, str]
    """Notes on changed settings that take effect later."""


class Change(msgspec.Struct):
    """A change of a setting; `old` and `new` are null for the environment's value."""

    changed_at: datetime
    changed_by: str
    key: str
    old: Any
    new: Any
    action: Literal["set", "delete", "rolled back"]
    reason: str | None


class Audit(msgspec.Struct):
    """The latest changes, newest first."""

    changes: list[Change]


class _Key(BaseConverter):
    """The part of a path that names a setting; `audit` and `bulk` are routes of their own."""

    regex = "(?!(?:audit|bulk)$)[^/]+"


_DECLARED: dict[str, Any] = {"scopes": ("settings",), "tag": Tag.SETTINGS}


def blueprint(changes: Changes) -> Blueprint:
    """`/settings`, `/settings/bulk`, `/settings/<key>` and `/settings/audit`."""
    routes = Blueprint("settings", __name__)
    routes.record_once(lambda state: state.app.url_map.converters.update(setting=_Key))
    single = msgspec.json.Decoder(SettingRequest)
    bulk = msgspec.json.Decoder(BulkRequest)

    @routes.get("/settings", **_DECLARED)
    @openapi.describe({200: SettingsAnswer})
    def settings() -> dict[str, Any]:
        """The settings that can change at run time, and their values."""
        return _answer(changes, changes.live.now, set())

    @routes.post("/settings", **_DECLARED)
    @openapi.describe({200: SettingsAnswer}, errors=(*_SENT, *_CHANGING), body=SettingRequest)
    def set_one() -> dict[str, Any]:
        """Change a setting, for every worker and the model server.

        It is applied first and then stored: a value that cannot be applied changes nothing.
        """
        asked = body.read(single, '{"key": "max_batch_size", "value": 32}')
        return _answer(changes, changes.change({asked.key: asked.value}, _who()), {asked.key})

    @routes.post("/settings/bulk", **_DECLARED)
    @openapi.describe({200: SettingsAnswer}, errors=(*_SENT, *_CHANGING), body=BulkRequest)
    def set_many() -> dict[str, Any]:
        """Change several settings: all of them, or none."""
        asked = body.read(bulk, '{"settings": {"max_batch_size": 32}}').settings
        return _answer(changes, changes.change(asked, _who()), set(asked))

    @routes.delete("/settings/<setting:key>", **_DECLARED)
    @openapi.describe({200: SettingsAnswer}, errors=_CHANGING)
    def delete(key: str) -> dict[str, Any]:
        """Restore the environment's value."""
        return _answer(changes, changes.delete(key, _who()), {key})

    @routes.get("/settings/audit", **_DECLARED)
    @openapi.describe(
        {200: Audit},
        errors=(InvalidInput, SettingsFixed, DatabaseUnavailable),
        query={"limit": Annotated[int, Meta(ge=1, le=MOST_CHANGES)]},
    )
    def audit() -> Any:
        """The latest 100 changes, or as many as `limit` says, with author and time."""
        rows = changes.audit(_limit())
        return jsonify(msgspec.to_builtins(Audit([_change(row) for row in rows])))

    return routes


def _answer(changes: Changes, now: SettingsSnapshot, changed: set[str]) -> dict[str, Any]:
    answer = SettingsAnswer(
        runtime_settings.shown(now.settings),
        list(runtime_settings.NAMES),
        now.source,
        now.version,
        changes.notes(changed),
    )
    shown: dict[str, Any] = msgspec.to_builtins(answer)
    return shown


def _change(row: Any) -> Change:
    return Change(**{name: getattr(row, name) for name in Change.__struct_fields__})


def _who() -> str:
    """The caller: its key's name, else its address."""
    return getattr(g, "caller_name", None) or request.remote_addr or "unknown"


def _limit() -> int:
    text = request.args.get("limit", str(CHANGES))
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MOST_CHANGES:
        raise InvalidInput(f"limit is {text[:20]!r}; allowed: a whole number from 1 to {MOST_CHANGES}")
    return int(text)
