"""The note next to the key's file of a model server's last swap, so that its next start loads that model."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import msgspec
from loguru import logger

from embedshare import private_file


class Note(msgspec.Struct, frozen=True):
    """The file's content."""

    configured: str
    """EMBEDDING_MODEL_NAME at the time of the swap."""

    swapped_in: str
    when: str


class SwapNote:
    """The note at `path` of a server whose EMBEDDING_MODEL_NAME is `configured`."""

    def __init__(self, path: Path, configured: str) -> None:
        self.path = path
        self._configured = configured

    def read(self) -> Note | None:
        """The note, if there is a valid one.

        It is void, and removed, once EMBEDDING_MODEL_NAME differs from its value at the swap.
        """
        note = private_file.read_note(self.path, Note)
        if note is not None and note.configured != self._configured:
            logger.info(
                "Ignoring the swap to {2} (EMBEDDING_MODEL_NAME was {0} and is {1})",
                note.configured,
                self._configured,
                note.swapped_in,
            )
            self._remove()
            return None
        return note

    def write(self, model_name: str) -> None:
        """Note that `model_name` serves now. For the configured model, remove the note."""
        if model_name == self._configured:
            self._remove()
            return
        note = Note(self._configured, model_name, datetime.now(timezone.utc).isoformat(timespec="seconds"))
        try:
            private_file.replace(self.path, msgspec.json.format(msgspec.json.encode(note)))
        except OSError as error:
            logger.error(
                "Could not write {} ({}); the next start serves {} again", self.path, error, self._configured
            )

    def _remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            logger.error("Could not remove the outdated {}: {}", self.path, error)
