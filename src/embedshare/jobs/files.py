"""Uploaded files of JSON lines, from which jobs are created; a job keeps what it needs of them itself."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import IO

import msgspec

from embedshare.errors import UnknownFile
from embedshare.jobs import entries
from embedshare.jobs.entries import Entries
from embedshare.jobs.room import Room

_CONTENT = "content"
_COPY_BYTES = 1 << 20
#: The longest name that is kept of a file.
_MOST_NAME_CHARS = 255


class StoredFile(msgspec.Struct, frozen=True):
    """An uploaded file. `name` is the caller's, and part of no path; `created` in seconds since 1970."""

    id: str
    owner: str
    name: str
    created: float
    held_bytes: int


class FileStore:
    """The files of one folder. Thread-safe and process-safe."""

    def __init__(self, folder: Path, room: Room) -> None:
        self._entries = Entries(folder)
        self._room = room

    def add(self, content: IO[bytes], name: str, owner: str, size: int = 0) -> StoredFile:
        """Store a file, whole or not at all; `size`: its expected bytes.

        Raises TooManyJobs, NoRoomForJobs, JobsNotKept.
        """
        self._room.check_free(size)
        draft = self._entries.begin()
        try:
            with entries.told(self._entries.folder):
                descriptor = os.open(draft / _CONTENT, entries.NEW, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    shutil.copyfileobj(content, file, _COPY_BYTES)
                    file.flush()
                    os.fsync(file.fileno())
                size = (draft / _CONTENT).stat().st_size
            stored = StoredFile(draft.name[1:-4], owner, name[:_MOST_NAME_CHARS], time.time(), size)
            with self._room.claimed(owner, size):
                self._entries.publish(draft, msgspec.json.encode(stored))
        finally:
            self._entries.discard(draft)
        return stored

    def files(self, owner: str | None = None) -> list[StoredFile]:
        """The files of an owner, or of all, oldest first."""
        found = [entries.decoded(note, StoredFile) for note in self._entries.notes()]
        return sorted(
            (file for file in found if file is not None and owner in (None, file.owner)),
            key=lambda file: (file.created, file.id),
        )

    def file(self, name: str, owner: str) -> StoredFile:
        """The file of an id. Raises UnknownFile, also for another owner's."""
        stored = entries.decoded(self._entries.note(name), StoredFile)
        if stored is None or stored.owner != owner:
            raise unknown(name)
        return stored

    def open(self, file: StoredFile) -> IO[bytes]:
        """The file's content. Raises UnknownFile."""
        try:
            return (self._entries.folder / file.id / _CONTENT).open("rb")
        except FileNotFoundError:
            raise unknown(file.id) from None

    def remove(self, file: StoredFile) -> None:
        """Delete the file. Raises UnknownFile."""
        if not self._entries.remove(file.id):
            raise unknown(file.id)

    def sweep(self, kept_s: float) -> None:
        """Delete the files that were uploaded `kept_s` seconds ago, and what killed processes have left."""
        for file in self.files():
            if time.time() - file.created > kept_s:
                self._entries.remove(file.id)
        self._entries.sweep()


def unknown(name: str) -> UnknownFile:
    """The error for an id that no file of the caller has."""
    return UnknownFile(f"there is no file {name[:100]!r} here: it was deleted, or is another key's")
