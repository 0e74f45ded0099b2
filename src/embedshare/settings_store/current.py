"""This process's settings in force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from embedshare.settings import Settings
from embedshare.settings_store import runtime_settings

Source = Literal["environment", "database"]


class SettingsSnapshot(NamedTuple):
    """The settings of one moment."""

    settings: Settings
    """The settings in force: the environment's with the stored values."""

    stored: Mapping[str, Any]
    """The database's values by key."""

    version: int
    source: Source
    models: tuple[Mapping[str, Any], ...] = ()
    """The fields of the database's models, with their ids; without one, EMBEDDING_MODELS_FILE or the settings
    name the models."""


class CurrentSettings:
    """Read by every request and changed by one thread; readers need no lock, since a change replaces all at
    once."""

    def __init__(self, settings: Settings) -> None:
        self._environment = settings
        source: Source = "database" if settings.operation.use_db_settings else "environment"
        self.now = SettingsSnapshot(settings, {}, 0, source)

    @property
    def settings(self) -> Settings:
        return self.now.settings

    @property
    def normalize(self) -> bool:
        """Whether the HTTP routes return vectors of length 1."""
        return self.now.settings.web.normalize

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """Web pages that may call from a browser."""
        return self.now.settings.web.cors_origins

    def placed(self) -> Settings:
        """The environment's settings with the current `host` and `port`, for a worker that starts."""
        web = self.now.settings.web
        return self._environment.with_values({"EMBEDDING_HOST": web.host, "PORT": web.port})

    def with_stored(self, stored: Mapping[str, Any]) -> Settings:
        """The settings that these values in the database would give."""
        return runtime_settings.with_values(self._environment, stored)

    def take(self, stored: Mapping[str, Any], version: int, models: Sequence[Mapping[str, Any]] = ()) -> None:
        """Put these values in force."""
        source = self.now.source
        self.now = SettingsSnapshot(self.with_stored(stored), stored, version, source, tuple(models))
