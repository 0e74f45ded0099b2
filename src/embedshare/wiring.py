"""The parts that a web worker is given: its callers' keys, their rates, and settings that may change while it
runs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from embedshare.access.key_ring import KeyRing
from embedshare.access.keys import Principal, digest
from embedshare.errors import EmbedshareError, MissingDependency, missing_database
from embedshare.ipc import authkey, codec
from embedshare.jobs import place
from embedshare.jobs.files import FileStore
from embedshare.jobs.store import JobStore
from embedshare.models.sources import database
from embedshare.settings import Settings
from embedshare.settings_store.changes import SettingsChanges
from embedshare.settings_store.current import CurrentSettings
from embedshare.settings_store.model_changes import ModelChanges
from embedshare.web.guards.auth import Rates
from embedshare.web.session_client import Sessions, SessionsOf


class Model(Protocol):
    """The questions to the worker's client here."""

    def client_stats(self) -> dict[str, Any]: ...
    def swap_model(self, model_name: str, *, how: codec.ModelSettings) -> dict[str, Any]: ...
    def set_models(self, rows: Sequence[Mapping[str, Any]], version: int) -> Any: ...


def key_ring(settings: Settings) -> KeyRing | None:
    """The API keys of the database and of EMBEDDING_ADMIN_KEY_FILE, and the one derived from the model
    server's key."""
    if not settings.web.asks_for_keys:
        return None
    try:
        from embedshare.database.api_keys import Keys
        from embedshare.database.database import Database  # SQLAlchemy, only where keys are required
    except ImportError as error:
        raise missing_database(error) from None

    administrator = {}
    if settings.web.admin_key_file is not None:
        key = authkey.handed_in(Path(settings.web.admin_key_file), "EMBEDDING_ADMIN_KEY_FILE")
        administrator[digest(key)] = Principal("EMBEDDING_ADMIN_KEY_FILE", frozenset({"admin"}))

    def without_database() -> dict[str, Principal]:
        try:
            operator = digest(authkey.operator_key(authkey.client_key(settings)))
        except EmbedshareError:  # there is no such key yet
            return administrator
        return {**administrator, operator: Principal("operator", frozenset({"metrics"}))}

    keys = Keys(Database.open(settings, authkey.key_file(settings).parent))
    return KeyRing(keys.valid, without_database, keys.used)


def rates(settings: Settings) -> Rates | None:
    """The counter of callers' requests, if the settings limit them."""
    web = settings.web
    if not (web.rate_limit or web.model_rate_limits):
        return None
    from embedshare.access.rates import Rates  # with its libraries, only where rates are limited

    return Rates(web.rate_limit, web.redis_url, lambda: deployment(settings), web.rates_by_model)


def deployment(settings: Settings) -> str | None:
    """The name that all workers of one model server share, and no others; None while its key is missing.

    It is a digest of the key and does not reveal it.
    """
    if settings.web.redis_prefix is not None:
        return settings.web.redis_prefix
    if not settings.client.use_ipc:
        return "local"  # such workers share nothing that would name them
    try:
        key = authkey.client_key(settings)
    except EmbedshareError:
        return None
    return hmac.new(key, b"embedshare deployment", hashlib.sha256).hexdigest()[:16]


def jobs(settings: Settings) -> JobStore | None:
    """The jobs of this machine's workers; None in a worker that takes none."""
    return place.store(settings) if settings.takes_jobs else None


def files(settings: Settings) -> FileStore | None:
    """The files that callers of this machine's workers have uploaded; None in a worker without jobs."""
    return place.files(settings) if settings.takes_jobs else None


def sessions(settings: Settings) -> SessionsOf | None:
    """The sessions of an owner, on this machine's session server; None in a worker without sessions."""
    if not settings.sessions.enabled:
        return None

    def of_owner(owner: str) -> Sessions:
        try:
            # With gRPC, only where sessions are used.
            from embedshare.grpc.client import SessionClient  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise MissingDependency(
                f"sessions need a package that is not installed ({error}): pip install 'embedshare[sessions]'"
            ) from None
        client: Sessions = SessionClient.of(settings, owner)
        return client

    return of_owner


def settings_changes(model: Model, settings: Settings) -> SettingsChanges:
    """The functions of `/settings`; settings in a database are read continuously from now on."""
    live = CurrentSettings(settings)

    def apply_model(wanted: Settings, version: int) -> None:
        how = codec.ModelSettings(
            wanted.model.device, wanted.model.max_batch_size, wanted.model.cache_dir, version
        )
        model.swap_model(wanted.model.name, how=how)

    if not settings.operation.use_db_settings:
        return SettingsChanges(live, None, apply_model)
    try:
        from embedshare.settings_store.sync import SettingsSync
    except ImportError as error:
        raise missing_database(error) from None
    kept = SettingsSync(live, authkey.key_file(settings).parent)
    kept.watcher.start()
    return SettingsChanges(live, kept, apply_model)


def model_changes(model: Model, changes: SettingsChanges) -> ModelChanges:
    """The functions of `/settings/models`."""
    return ModelChanges(changes, database, lambda rows, version: model.set_models(rows, version))


def server_state(model: Model) -> str:
    """The model server's state at the last call, since a health check waits for nothing: `unknown` before the
    first, `off` if none is used."""
    stats = model.client_stats()
    if stats["state"] == "local":
        return "off"
    if stats["state"] == "connecting" and not stats["calls"]:
        return "unknown"
    return "connected" if stats["state"] == "connected" else "disconnected"
