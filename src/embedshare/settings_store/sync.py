"""The settings that a process takes from the database: opened, watched, changed."""

from __future__ import annotations

from pathlib import Path

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
