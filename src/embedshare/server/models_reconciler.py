"""Keeps the served models equal to the rows of the database, and rolls back rows that cannot be served."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loguru import logger

from embedshare.errors import DatabaseUnavailable, EmbedshareError, SwapRefused
from embedshare.models.registry import Registry
from embedshare.models.sources import database
from embedshare.server.reconciler import WHO, Patience, Reconciler
from embedshare.settings import Settings
from embedshare.settings_store.current import CurrentSettings
from embedshare.settings_store.repository import SettingsRepository, StoredSettings
from embedshare.settings_store.watcher import Watcher

#: The fields of models, in order.
Rows = Sequence[Mapping[str, Any]]


class ModelsReconciler:
    """Called for each change that a worker asks for, and after each reading of the database.

    `served`: the rows that are served already. `update(registry)` serves other models; `without_rows()` gives
    those of a database without rows, of which `single` keeps the only one, if the settings name it.
    """

    def __init__(
        self,
        live: CurrentSettings,
        watcher: Watcher,
        store: SettingsRepository,
        update: Callable[[Registry], None],
        without_rows: Callable[[], Registry],
        single: Reconciler | None,
        served: Rows,
    ) -> None:
        self._live = live
        self._watcher = watcher
        self._store = store
        self._update = update
        self._without_rows = without_rows
        self._single = single
        self._served = tuple(served)
        self._seen = live.now.models
        self._agreed = self._served if self._served == self._seen else None
        """The rows that were stored and served last; None if those of the start cannot be served."""
        self._patience = Patience()
        self._acting = threading.Lock()

    def registry(self) -> Registry:
        """The models that the database names now, or without rows the others.

        Raises InvalidSetting, InvalidModels.
        """
        return self._registry(self._live.now.models)

    def check_swap(self, wanted: Settings, version: int | None) -> None:
        """See service.ChangeGuard."""
        if self._live.now.models:
            raise SwapRefused("the database names the models; change them with POST /settings/models")
        if self._single is not None:
            self._single.check_swap(wanted, version)

    def set_models(self, rows: Rows, version: int) -> None:
        """See service.ChangeGuard."""
        rows = tuple(rows)
        try:
            self._watcher.look()
        except DatabaseUnavailable as error:
            if rows != self._live.now.models:
                message = f"the database does not answer, so that no model can be saved: {error.message}"
                raise SwapRefused(message) from None
        if rows != self._live.now.models:  # else it undoes a change that was not stored
            if version != self._live.now.version:
                raise SwapRefused("the settings changed meanwhile; retry")
            if self._agreed is not None and self._served != self._live.now.models:
                raise SwapRefused("another change of the models is being saved; retry")
        self._serve(rows)

    def on_look(self, before: Settings, found: StoredSettings) -> None:
        """See watcher.Seen: serve the models that the database names, or roll them back there."""
        rows = self._live.now.models
        if not rows and not self._served:
            if self._single is not None:
                self._single.on_look(before, found)
        elif self._acting.acquire(blocking=False):
            try:
                if self._served == rows:
                    self._agreed = rows
                    self._patience.agree()
                elif self._patience.is_due(is_new=self._seen != rows):
                    self._follow(rows, self._live.now.version)
                self._seen = rows
            except DatabaseUnavailable:
                self._patience.retry_later()
            finally:
                self._acting.release()

    def _follow(self, rows: Rows, version: int) -> None:
        try:
            self._serve(rows)
            self._agreed = tuple(rows)
            self._patience.agree()
            logger.info("Serving the models of {} rows of the database", len(rows))
        except SwapRefused as error:
            logger.info("Postponing the change of models ({})", error.message)
        except EmbedshareError as error:
            logger.error("Keeping the models as they were ({})", error.message)
            if self._agreed is None:
                self._patience.retry_later()
            else:
                self._store.change_models(self._agreed, WHO, error.message, version)

    def _serve(self, rows: Rows) -> None:
        self._update(self._registry(rows))
        self._served = tuple(rows)

    def _registry(self, rows: Rows) -> Registry:
        return database.registry(rows) if rows else self._without_rows()
