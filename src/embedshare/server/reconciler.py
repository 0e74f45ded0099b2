"""Keeps the model that serves the one that the database names, and out of the database what does not load."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from loguru import logger

from embedshare.engine import weights
from embedshare.errors import DatabaseUnavailable, EmbedshareError, SwapRefused
from embedshare.settings import Settings
from embedshare.settings_store import runtime_settings
from embedshare.settings_store.current import CurrentSettings
from embedshare.settings_store.repository import SettingsRepository, StoredSettings
from embedshare.settings_store.watcher import Watcher

#: A worker has the model changed first and keeps that in the database then: seconds that it may take to.
GRACE_S = 8.0
#: Until a model is tried again that did not load and could not be rolled back, in seconds.
RETRY_S = 30.0
_WHO = "model server"


class Reconciler:
    """Asked before each swap, and told of each look at the database.

    `serving()` is what the model that serves was loaded by; `change(settings)` has another take over.
    """

    def __init__(
        self,
        live: CurrentSettings,
        watcher: Watcher,
        store: SettingsRepository,
        serving: Callable[[], Settings],
        change: Callable[[Settings], Any],
    ) -> None:
        self._live = live
        self._watcher = watcher
        self._store = store
        self._serving = serving
        self._change = change
        self._agreed: Mapping[str, Any] = live.now.stored
        self._differs_since: float | None = None
        self._retry_at = 0.0
        self._acting = threading.Lock()

    def check_swap(self, wanted: Settings, version: int | None) -> None:
        """See service.SwapGuard."""
        if version is None:
            raise SwapRefused("the model is kept in the database: change it with POST /settings")
        try:
            self._watcher.look()
        except DatabaseUnavailable as error:
            if not same_model(wanted, self._live.settings):
                raise SwapRefused(f"the model server cannot keep another model: {error.message}") from None
        if same_model(wanted, self._live.settings):
            return  # what the database names: a change was not kept, and is taken back
        if version != self._live.now.version:
            raise SwapRefused("the settings were changed meanwhile; ask again")
        if not same_model(self._serving(), self._live.settings):
            raise SwapRefused("another change of the model is being kept; ask again")

    def on_look(self, before: Settings, found: StoredSettings) -> None:
        """See watcher.Seen: swap to what the database names, or roll it back there."""
        if not self._acting.acquire(blocking=False):
            return
        try:
            self._roll_back_invalid(found)
            wanted = self._live.settings
            if same_model(self._serving(), wanted):
                self._agreed, self._differs_since = self._live.now.stored, None
            elif self._is_due(is_new=not same_model(before, wanted)):
                self._follow(wanted)
        except DatabaseUnavailable:
            self._retry_at = time.monotonic() + RETRY_S
        finally:
            self._acting.release()

    def _is_due(self, is_new: bool) -> bool:
        """Whether to act: at once on a change of the database, later where it is the model that changed."""
        now = time.monotonic()
        if is_new:
            return True
        if self._differs_since is None:
            self._differs_since = now
        return now - self._differs_since >= GRACE_S and now >= self._retry_at

    def _follow(self, wanted: Settings) -> None:
        logger.info("the database names {}, which is to take over", wanted.model.name)
        stored = self._live.now.stored
        try:
            self._change(with_model(self._serving(), wanted))
            self._agreed, self._differs_since = stored, None
        except SwapRefused as error:
            logger.info("not now: {}", error.message)
        except EmbedshareError as error:
            changed = {
                key: stored.get(key, runtime_settings.DELETED)
                for key in runtime_settings.OF_THE_MODEL
                if stored.get(key, runtime_settings.DELETED)
                != self._agreed.get(key, runtime_settings.DELETED)
            }
            self._store.roll_back(changed, self._agreed, _WHO, error.message)
            self._retry_at = time.monotonic() + RETRY_S

    def _roll_back_invalid(self, found: StoredSettings) -> None:
        for key, (value, reason) in found.invalid.items():
            self._store.roll_back({key: value}, self._live.now.stored, _WHO, reason)


def roll_back_all(live: CurrentSettings, store: SettingsRepository, reason: str) -> None:
    """At a start, where the model that the database names does not load: the environment's is to serve."""
    stored = {key: value for key, value in live.now.stored.items() if key in runtime_settings.OF_THE_MODEL}
    try:
        store.roll_back(stored, {}, _WHO, reason)
    except DatabaseUnavailable:
        pass  # what is wrong is found again by a later look, and rolled back then


def with_model(settings: Settings, wanted: Settings) -> Settings:
    """`settings` with the model of `wanted`, and how that is served."""
    names = [runtime_settings.NAMES[key] for key in runtime_settings.OF_THE_MODEL]
    values: dict[str, Any] = {name: wanted.value(name) for name in names}
    if wanted.model.cache_dir != settings.model.cache_dir:
        # A trusted name means what the operator's cache holds: in another folder it may be anybody's code.
        values["EMBEDDING_TRUST_REMOTE_CODE"] = ()
    return settings.with_values(values)


def same_model(one: Settings, other: Settings) -> bool:
    """Whether both name one model, served in one way."""
    same_name = weights.full_name(one.model.name) == weights.full_name(other.model.name)
    return same_name and with_model(one, other) == dataclasses.replace(
        one, model=dataclasses.replace(one.model, name=other.model.name)
    )
