"""The settings that a process takes from the database: opened, watched, changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from embedshare.database.database import Database
from embedshare.settings_store.current import CurrentSettings
from embedshare.settings_store.last_known import LastKnown
from embedshare.settings_store.repository import SettingsRepository
from embedshare.settings_store.watcher import Watcher


class SettingsSync:
    """`live`, kept equal to the database; this user's files are in `folder`.

    It takes the database's settings at once, and again at intervals after `watcher.start`. Raises
    InvalidSetting, MissingDependency.
    """

    def __init__(self, live: CurrentSettings, folder: Path) -> None:
        self.live = live
        settings = live.settings
        self.database = Database.open(settings, folder)
        self.store = SettingsRepository(self.database)
        last_known = LastKnown(folder / f"settings-{settings.server.port}.json")
        self.watcher = Watcher(self.store, live, last_known)
        self.watcher.first_look()

    @property
    def status(self) -> Literal["connected", "disconnected"]:
        """The database's state when it was last asked."""
        return self.database.status

    def look(self) -> None:
        """See Watcher.look."""
        self.watcher.look()

    def change(self, changes: Mapping[str, Any], who: str) -> None:
        """See SettingsRepository.change."""
        self.store.change(changes, who)

    def audit(self, limit: int) -> list[Any]:
        """See SettingsRepository.audit."""
        return self.store.audit(limit)
