"""The database's last known settings, in a file next to the key, for a process that starts while the database
is down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    models: list[dict[str, Any]] = []


class LastKnown:
    """The file at `path`, which only its owner can read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[dict[str, Any], int, list[dict[str, Any]]] | None:
        """Values by key, their version, and the models, if there is a trusted file."""
        kept = private_file.read_note(self.path, _SavedSettings)
        if kept is None:
            return None
        try:
            values = {key: runtime_settings.value_of(key, value) for key, value in kept.values.items()}
        except InvalidSetting as error:
            logger.error("Ignoring {}: {}", self.path, error)
            return None
        return values, kept.version, kept.models

    def write(self, values: dict[str, Any], version: int, models: Sequence[Mapping[str, Any]] = ()) -> None:
        """Store the values and models."""
        saved = _SavedSettings(version, values, [dict(model) for model in models])
        try:
            private_file.replace(self.path, msgspec.json.encode(saved))
        except OSError as error:
            logger.error("Could not write {}: {}", self.path, error)
