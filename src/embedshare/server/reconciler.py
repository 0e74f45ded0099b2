"""Keeps the served model equal to the one that the database names, and rolls back a model that does not
load."""

from __future__ import annotations

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

#: Seconds that a worker may take to store a change of the model, which is applied first.
GRACE_S = 8.0
#: Seconds until the retry of a model that neither loaded nor could be rolled back.
RETRY_S = 30.0
#: The author of changes that undo others.
WHO = "model server"


class Patience:
    """When to act on a difference from the database; not thread-safe."""

    def __init__(self) -> None:
        self._differs_since: float | None = None
        self._retry_at = 0.0

    def is_due(self, is_new: bool) -> bool:
        """Whether to act: at once on a change of the database, later on one that a worker may still store."""
        now = time.monotonic()
        if is_new:
            return True
        if self._differs_since is None:
            self._differs_since = now
        return now - self._differs_since >= GRACE_S and now >= self._retry_at

    def agree(self) -> None:
        """There is no difference."""
        self._differs_since = None

    def retry_later(self) -> None:
        """Act again after RETRY_S."""
        self._retry_at = time.monotonic() + RETRY_S


class Reconciler:
    """Called before each swap and after each reading of the database.

    `serving()` gives the served model's settings; `change(settings)` replaces the model.
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
        self._patience = Patience()
        self._acting = threading.Lock()

    def check_swap(self, wanted: Settings, version: int | None) -> None:
        """See service.ChangeGuard."""
        if version is None:
            raise SwapRefused("the database names the model; change it with POST /settings")
        try:
            self._watcher.look()
        except DatabaseUnavailable as error:
            if not same_model(wanted, self._live.settings):
                raise SwapRefused(
                    f"the database does not answer, so that no other model can be saved: {error.message}"
                ) from None
        if same_model(wanted, self._live.settings):
            return  # the database's model: undoes a change that was not stored
        if version != self._live.now.version:
            raise SwapRefused("the settings changed during the swap; retry")
        if not same_model(self._serving(), self._live.settings):
            raise SwapRefused("another change of the model is being saved; retry")

    def on_look(self, before: Settings, found: StoredSettings) -> None:
        """See watcher.Seen: swap to the model that the database names, or roll it back there."""
        if not self._acting.acquire(blocking=False):
            return
        try:
            self._roll_back_invalid(found)
            wanted = self._live.settings
            if same_model(self._serving(), wanted):
                self._agreed = self._live.now.stored
                self._patience.agree()
            elif self._patience.is_due(is_new=not same_model(before, wanted)):
                self._follow(wanted)
        except DatabaseUnavailable:
            self._patience.retry_later()
        finally:
            self._acting.release()

    def _follow(self, wanted: Settings) -> None:
        logger.info("Loading {} (the database names it)", wanted.model.name)
        stored = self._live.now.stored
        try:
            self._change(with_model(self._serving(), wanted))
            self._agreed = stored
            self._patience.agree()
        except SwapRefused as error:
            logger.info("Postponing the change of model ({})", error.message)
        except EmbedshareError as error:
            changed = {
                key: stored.get(key, runtime_settings.DELETED)
                for key in runtime_settings.OF_THE_MODEL
                if stored.get(key, runtime_settings.DELETED)
                != self._agreed.get(key, runtime_settings.DELETED)
            }
            self._store.roll_back(changed, self._agreed, WHO, error.message)
            self._patience.retry_later()

    def _roll_back_invalid(self, found: StoredSettings) -> None:
        for key, (value, reason) in found.invalid.items():
            self._store.roll_back({key: value}, self._live.now.stored, WHO, reason)


def roll_back_all(live: CurrentSettings, store: SettingsRepository, reason: str) -> None:
    """At a start whose database model does not load, roll it back: the environment's is to serve."""
    stored = {key: value for key, value in live.now.stored.items() if key in runtime_settings.OF_THE_MODEL}
    try:
        store.roll_back(stored, {}, WHO, reason)
    except DatabaseUnavailable:
        pass  # a later reading finds the error again and rolls it back


def with_model(settings: Settings, wanted: Settings) -> Settings:
    """`settings` with the model of `wanted` and its options."""
    names = [runtime_settings.NAMES[key] for key in runtime_settings.OF_THE_MODEL]
    values: dict[str, Any] = {name: wanted.value(name) for name in names}
    if wanted.model.cache_dir != settings.model.cache_dir:
        # Trust in a name is trust in the operator's cache: another folder may hold any code.
        values["EMBEDDING_TRUST_REMOTE_CODE"] = ()
    return settings.with_values(values)


def same_model(one: Settings, other: Settings) -> bool:
    """Whether both name one model, served in the same way."""
    same_name = weights.full_name(one.model.name) == weights.full_name(other.model.name)
    named = one.with_values({"EMBEDDING_MODEL_NAME": other.model.name})
    return same_name and with_model(one, other) == named
