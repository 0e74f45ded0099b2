"""Looks for changes of the settings in the database, twice a second, and hands them to who applies them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from loguru import logger

from embedshare import platforms
from embedshare.errors import DatabaseUnavailable
from embedshare.settings import Settings
from embedshare.settings_store.current import CurrentSettings
from embedshare.settings_store.last_known import LastKnown
from embedshare.settings_store.repository import SettingsRepository, StoredSettings

#: Between two looks, in seconds.
LOOK_EVERY_S = 0.5
#: Told after each look what held before it, and what the look has found.
Seen = Callable[[Settings, StoredSettings], None]


class Watcher:
    """Keeps `live` what the database says, and what it last said while it is away.

    A row that has no valid value changes nothing: what held before it goes on holding.
    """

    def __init__(self, store: SettingsRepository, live: CurrentSettings, last_known: LastKnown) -> None:
        self._store = store
        self._live = live
        self._last_known = last_known
        self._on_look: Seen | None = None
        self._begin()
        platforms.after_fork_in_child(self._reset_after_fork)

    def _begin(self) -> None:
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def first_look(self) -> None:
        """Take the settings from the database, or, where it is away, those that were last seen."""
        try:
            self.look()
        except DatabaseUnavailable:
            kept = self._last_known.read()
            if kept is None:
                logger.warning("the settings of the environment hold until the database answers")
                return
            self._live.take(*kept)
            logger.warning("the settings that the database had last hold until it answers")

    def start(self, on_look: Seen | None = None) -> None:
        """Go on looking in a thread of its own, and tell `on_look` of each look."""
        self._on_look = on_look
        self._thread = threading.Thread(target=self._run, name="settings", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def look(self) -> None:
        """Look now. Raises DatabaseUnavailable; then nothing has changed."""
        with self._looking:
            before, found = self._live.now, self._store.read()
            kept = {key: before.stored[key] for key in found.invalid if key in before.stored}
            values = {**found.values, **kept}
            if values != before.stored or found.version != before.version:
                self._live.take(values, found.version)
                self._last_known.write(values, found.version)
                for key, (_, reason) in found.invalid.items():
                    logger.error("the database's {} is not heeded: {}", key, reason)
        if self._on_look is not None:
            self._on_look(before.settings, found)

    def _reset_after_fork(self) -> None:
        """The child has a thread of its own."""
        looked = self._thread is not None and not self._stop.is_set()
        self._begin()
        if looked:
            self.start(self._on_look)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except DatabaseUnavailable:
                pass  # the database itself has said so, once
            except Exception as error:  # the looking must not end with a surprise
                logger.opt(exception=error).error("a look at the settings failed")
