"""The database's settings as they were last seen, in a file beside the key, for a process that starts while
the database is away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from loguru import logger

from embedshare import private_file
from embedshare.errors import InvalidSetting
from embedshare.settings_store import runtime_settings


class _SavedSettings(msgspec.Struct, frozen=True):
    version: int
    values: dict[str, Any]


class LastKnown:
    """The file at `path`, which only its owner can read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[dict[str, Any], int] | None:
        """Values by key and their version, where there is a file to be trusted."""
        kept = private_file.read_note(self.path, _SavedSettings)
        if kept is None:
            return None
        try:
            values = {key: runtime_settings.value_of(key, value) for key, value in kept.values.items()}
        except InvalidSetting as error:
            logger.error("ignoring {}: {}", self.path, error)
            return None
        return values, kept.version

    def write(self, values: dict[str, Any], version: int) -> None:
        """Keep what was seen."""
        try:
            private_file.replace(self.path, msgspec.json.encode(_SavedSettings(version, values)))
        except OSError as error:
            logger.error("{} was not written: {}", self.path, error)
