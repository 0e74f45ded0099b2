"""The settings and models that can change at run time: their values, changes and audit."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Protocol

import msgspec
from flask import Blueprint, Response, g, jsonify, request
from msgspec import UNSET, Meta, UnsetType
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
    UnknownModel,
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


class ModelRows(Protocol):
    """The stored models' functions that these routes use."""

    @property
    def now(self) -> SettingsSnapshot: ...
    def put(self, row: dict[str, Any], who: str) -> SettingsSnapshot: ...
    def replace(self, rows: list[dict[str, Any]], who: str) -> SettingsSnapshot: ...
    def delete(self, spec_id: str, who: str) -> SettingsSnapshot: ...


class SettingRequest(msgspec.Struct):
    """A setting and its value: a text, or a value of the setting's type."""

    key: str
    value: Any


class BulkRequest(msgspec.Struct):
    """Values by setting: all of them are applied, or none."""

    settings: Annotated[dict[str, Any], Meta(min_length=1)]


class ModelConfig(msgspec.Struct, omit_defaults=True):
    """The model and its settings, by the names of `/settings`; those left out stay as they are."""

    model_name: str
    device: str | UnsetType = UNSET
    model_cache_dir: str | UnsetType = UNSET
    max_batch_size: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    normalize_embeddings: bool | UnsetType = UNSET


class ModelConfigured(msgspec.Struct):
    """The model in force."""

    success: bool
    message: str
    model_name: str


class SettingsAnswer(msgspec.Struct):
    """The values in force, and their source."""

    settings: dict[str, Any]
    supported_keys: list[str]
    source: Literal["environment", "database"]
    version: int
    notes: dict[str, str]
    """Notes on changed settings that take effect later."""


class ModelRow(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A model, with the fields of the file of models (docs/models.md); those left out are the settings'."""

    id: str
    """The name that callers use."""

    name: str | UnsetType = UNSET
    """The model that is loaded: a folder, a package's name, or a name on the hub; else the id."""

    aliases: list[str] | UnsetType = UNSET
    default: bool | UnsetType = UNSET
    """Whether it answers callers that name no model; else the first does."""

    dimensions: int | UnsetType = UNSET
    preload: bool | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET
    keep_alive_s: float | UnsetType = UNSET
    cache: Literal["off", "memory", "all"] | UnsetType = UNSET
    device: str | UnsetType = UNSET
    dtype: str | UnsetType = UNSET
    runtime: str | UnsetType = UNSET
    max_batch_tokens: int | UnsetType = UNSET
    max_batch_size: int | UnsetType = UNSET
    cache_dir: str | UnsetType = UNSET


class ModelsRequest(msgspec.Struct):
    """The models that there should be."""

    models: list[ModelRow]


class ModelsAnswer(msgspec.Struct):
    """The models in the database; without one, EMBEDDING_MODELS_FILE or the settings name the models."""

    models: list[dict[str, Any]]
    source: Literal["environment", "database"]
    version: int


class Change(msgspec.Struct):
    """A change of a setting, or of a model (key `models/<id>`); `old` and `new` are null where the database
    has no value."""

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
    """The part of a path that names a setting; `audit`, `bulk` and `models` are routes of their own."""

    regex = "(?!(?:audit|bulk|models)$)[^/]+"


_MODEL = '{"id": "minilm", "name": "all-MiniLM-L6-v2", "preload": true}'
_DECLARED: dict[str, Any] = {"scopes": ("settings",), "tag": Tag.SETTINGS}


def blueprint(changes: Changes, models: ModelRows) -> Blueprint:
    """`/settings` and its subpaths, and `POST /update-model-config`, another name of one."""
    routes = Blueprint("settings", __name__)
    routes.record_once(lambda state: state.app.url_map.converters.update(setting=_Key))
    single = msgspec.json.Decoder(SettingRequest)
    bulk = msgspec.json.Decoder(BulkRequest)
    of_model = msgspec.json.Decoder(ModelConfig)
    one_model = msgspec.json.Decoder(ModelRow)
    all_models = msgspec.json.Decoder(ModelsRequest)

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

    @routes.post("/update-model-config", **_DECLARED)
    @openapi.describe({200: ModelConfigured}, errors=(*_SENT, *_CHANGING), body=ModelConfig)
    def update_model_config() -> Response:
        """Change the model and its settings, as `POST /settings/bulk` does."""
        asked = body.read(of_model, '{"model_name": "all-MiniLM-L6-v2"}')
        now = changes.change(msgspec.to_builtins(asked), _who())
        name = now.settings.model.name
        return body.answer(ModelConfigured(True, f"the model is {name}", name))

    @routes.delete("/settings/<setting:key>", **_DECLARED)
    @openapi.describe({200: SettingsAnswer}, errors=_CHANGING)
    def delete(key: str) -> dict[str, Any]:
        """Restore the environment's value."""
        return _answer(changes, changes.delete(key, _who()), {key})

    @routes.get("/settings/models", **_DECLARED)
    @openapi.describe({200: ModelsAnswer})
    def stored_models() -> dict[str, Any]:
        """The models in the database, in order, as they were given."""
        return _models(models.now)

    @routes.post("/settings/models", **_DECLARED)
    @openapi.describe({200: ModelsAnswer}, errors=(*_SENT, *_CHANGING), body=ModelRow)
    def set_model() -> dict[str, Any]:
        """Add a model, or replace the one with its `id`.

        The model server applies it first, as a change of its file of models; what it cannot serve changes
        nothing. A new default takes it from the old.
        """
        return _models(models.put(msgspec.to_builtins(body.read(one_model, _MODEL)), _who()))

    @routes.put("/settings/models", **_DECLARED)
    @openapi.describe({200: ModelsAnswer}, errors=(*_SENT, *_CHANGING), body=ModelsRequest)
    def set_models() -> dict[str, Any]:
        """Put these models in place of all: all of them, or none."""
        asked = body.read(all_models, f'{{"models": [{_MODEL}]}}').models
        return _models(models.replace(msgspec.to_builtins(asked), _who()))

    @routes.delete("/settings/models/<path:id>", **_DECLARED)
    @openapi.describe({200: ModelsAnswer}, errors=(UnknownModel, *_CHANGING))
    def delete_model(id: str) -> dict[str, Any]:
        """Remove a model. After the last one, EMBEDDING_MODELS_FILE or the settings name the models."""
        return _models(models.delete(id, _who()))

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


def _models(now: SettingsSnapshot) -> dict[str, Any]:
    answer = ModelsAnswer([dict(row) for row in now.models], now.source, now.version)
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
