"""The note beside the key's file that a model server was swapped to another model: its next start must not
bring the old one back."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import msgspec
from loguru import logger

from embedshare import private_file


class Note(msgspec.Struct, frozen=True):
    """What the file holds."""

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
        """The note, where there is one that holds.

        It is void, and removed, once EMBEDDING_MODEL_NAME is another than it was then.
        """
        note = private_file.read_note(self.path, Note)
        if note is not None and note.configured != self._configured:
            logger.info(
                "EMBEDDING_MODEL_NAME was {} and is {} now: the swap to {} is void",
                note.configured,
                self._configured,
                note.swapped_in,
            )
            self._remove()
            return None
        return note

    def write(self, model_name: str) -> None:
        """Note that `model_name` serves now. Back at the configured model there is nothing to note."""
        if model_name == self._configured:
            self._remove()
            return
        note = Note(self._configured, model_name, datetime.now(timezone.utc).isoformat(timespec="seconds"))
        try:
            private_file.replace(self.path, msgspec.json.format(msgspec.json.encode(note)))
        except OSError as error:
            logger.error(
                "{} was not written ({}): the next start brings {} back", self.path, error, self._configured
            )

    def _remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            logger.error("{} is void and could not be removed: {}", self.path, error)
