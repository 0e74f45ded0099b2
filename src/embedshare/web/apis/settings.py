"""The settings that can be changed while everything runs: shown, changed, and who changed them."""

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

#: Changes that `/settings/audit` shows, at most and where nothing else is asked for.
MOST_CHANGES, CHANGES = 1000, 100
_CHANGING = (
    UnknownSetting, SettingsFixed, InvalidSetting, DatabaseUnavailable, SwapRefused, ServerUnavailable,
    OutOfMemory, DeadlineExceeded,
)  # fmt: skip
_SENT = (InvalidInput, TooLarge, UnsupportedMediaType)


class Changes(Protocol):
    """What these routes ask of who keeps the settings."""

    @property
    def live(self) -> Any: ...
    def change(self, given: dict[str, Any], who: str) -> SettingsSnapshot: ...
    def delete(self, key: str, who: str) -> SettingsSnapshot: ...
    def audit(self, limit: int) -> list[Any]: ...
    def notes(self, changed: set[str]) -> dict[str, str]: ...


class SettingRequest(msgspec.Struct):
    """A setting and its value: a text, or of the type that the setting has."""

    key: str
    value: Any


class BulkRequest(msgspec.Struct):
    """Values by setting: all of them hold afterwards, or none."""

    settings: Annotated[dict[str, Any], Meta(min_length=1)]


class SettingsAnswer(msgspec.Struct):
    """What holds now, and whose it is."""

    settings: dict[str, Any]
    supported_keys: list[str]
    source: Literal["environment", "database"]
    version: int
    notes: dict[str, str]
    """What is to be said of settings that were changed and do not hold at once."""


class Change(msgspec.Struct):
    """A change of a setting; `old` and `new` are null where the environment's value held."""

    changed_at: datetime
    changed_by: str
    key: str
    old: Any
    new: Any
    action: Literal["set", "delete", "rolled back"]
    reason: str | None


class Audit(msgspec.Struct):
    """The latest changes, the last one first."""

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
        """What can be changed while everything runs, and what holds."""
        return _answer(changes, changes.live.now, set())

    @routes.post("/settings", **_DECLARED)
    @openapi.describe({200: SettingsAnswer}, errors=(*_SENT, *_CHANGING), body=SettingRequest)
    def set_one() -> dict[str, Any]:
        """Change a setting, for every worker and the model server.

        It is applied first and kept then: what cannot be applied changes nothing.
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
        """Have the environment's value hold again."""
        return _answer(changes, changes.delete(key, _who()), {key})

    @routes.get("/settings/audit", **_DECLARED)
    @openapi.describe(
        {200: Audit},
        errors=(InvalidInput, SettingsFixed, DatabaseUnavailable),
        query={"limit": Annotated[int, Meta(ge=1, le=MOST_CHANGES)]},
    )
    def audit() -> Any:
        """Who changed what, and when: the latest 100 changes, or as many as `limit` says."""
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
    """The caller: by the name of its key, else by its address."""
    return getattr(g, "caller_name", None) or request.remote_addr or "unknown"


def _limit() -> int:
    text = request.args.get("limit", str(CHANGES))
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MOST_CHANGES:
        raise InvalidInput(f"limit is {text[:20]!r}; allowed: a whole number from 1 to {MOST_CHANGES}")
    return int(text)
