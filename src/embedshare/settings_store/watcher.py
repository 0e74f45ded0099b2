"""Reads the settings in the database twice a second, and passes changes on."""

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

#: Seconds between two readings.
LOOK_EVERY_S = 0.5
#: Called after each reading with the settings before it and its result.
Seen = Callable[[Settings, StoredSettings], None]


class Watcher:
    """Keeps `live` equal to the database, or to its last values while it is down.

    A row without a valid value changes nothing: the value before it stays in force.
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
        """Take the settings from the database, or, while it is down, the last known ones."""
        try:
            self.look()
        except DatabaseUnavailable:
            kept = self._last_known.read()
            if kept is None:
                logger.warning("Using the environment's settings until the database answers")
                return
            self._live.take(*kept)
            logger.warning("Using the settings last read from the database until it answers")

    def start(self, on_look: Seen | None = None) -> None:
        """Keep reading in a thread of its own, and call `on_look` after each reading."""
        self._on_look = on_look
        self._thread = threading.Thread(target=self._run, name="settings", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop reading."""
        self._stop.set()

    def look(self) -> None:
        """Read now. Raises DatabaseUnavailable; then nothing has changed."""
        with self._looking:
            before, found = self._live.now, self._store.read()
            kept = {key: before.stored[key] for key in found.invalid if key in before.stored}
            values = {**found.values, **kept}
            if (values, found.models, found.version) != (before.stored, before.models, before.version):
                self._live.take(values, found.version, found.models)
                self._last_known.write(values, found.version, found.models)
                for key, (_, reason) in found.invalid.items():
                    logger.error("Ignoring the database's {}: {}", key, reason)
        if self._on_look is not None:
            self._on_look(before.settings, found)

    def _reset_after_fork(self) -> None:
        """The child starts a thread of its own."""
        looked = self._thread is not None and not self._stop.is_set()
        self._begin()
        if looked:
            self.start(self._on_look)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except DatabaseUnavailable:
                pass  # logged once by the database itself
            except Exception as error:  # an unexpected error must not end the readings
                logger.opt(exception=error).error("Failed to read the settings")
