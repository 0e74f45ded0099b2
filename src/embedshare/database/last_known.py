"""The database's settings as they were last seen, in a file beside the key, for a process that starts while
the database is away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from loguru import logger

from embedshare import platforms
from embedshare.database import setting_keys
from embedshare.errors import InvalidSetting


class _Kept(msgspec.Struct, frozen=True):
    version: int
    values: dict[str, Any]


class LastKnown:
    """The file at `path`, which only its owner can read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[dict[str, Any], int] | None:
        """Values by key and their version, where there is a file to be trusted."""
        try:
            kept = msgspec.json.decode(platforms.read_secret(self.path), type=_Kept)
            return {
                key: setting_keys.value_of(key, value) for key, value in kept.values.items()
            }, kept.version
        except FileNotFoundError:
            return None
        except platforms.Exposed as error:
            logger.error("ignoring {}: others can read or own it ({})", self.path, error.strerror)
            return None
        except (OSError, msgspec.MsgspecError, InvalidSetting) as error:
            logger.error("{} is not heeded: {}", self.path, error)
            return None

    def write(self, values: dict[str, Any], version: int) -> None:
        """Keep what was seen."""
        try:
            platforms.replace_private(self.path, msgspec.json.encode(_Kept(version, values)))
        except OSError as error:
            logger.error("{} was not written: {}", self.path, error)
