"""The names of a server's models in a file, for a worker that starts while the server is away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from loguru import logger

from embedshare import private_file

#: Fields of an entry of EmbeddingClient.models() by which requests find a model.
_NAMING = ("id", "aliases", "default")


class KnownModels:
    """The file at `path`, there while the server has several models; only its owner can read it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: list[dict[str, Any]] | None = None

    def read(self) -> list[dict[str, Any]]:
        """The naming fields of the models; none without a trusted file."""
        return private_file.read_note(self._path, list[dict[str, Any]]) or []

    def write(self, entries: list[dict[str, Any]]) -> None:
        """Store the names of several models; remove those of before if there is one model."""
        names = [{field: entry[field] for field in _NAMING} for entry in entries] if len(entries) > 1 else []
        if names == self._written:
            return
        try:
            if names:
                private_file.replace(self._path, msgspec.json.encode(names))
            else:
                self._path.unlink(missing_ok=True)
            self._written = names
        except OSError as error:
            logger.error("Could not write {}: {}", self._path, error)
