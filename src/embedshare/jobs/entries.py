"""A folder of folders, each named by an id that cannot be guessed, and each there as a whole or not at all.

Other things in the folder are never changed or deleted: an operator may have named a shared one.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
from filelock import FileLock, Timeout
from loguru import logger

from embedshare import platforms
from embedshare.errors import EmbedshareError, JobsNotKept, NoRoomForJobs

T = TypeVar("T")
#: An id: 128 random bits. No other text becomes part of a path.
ID = re.compile(r"[0-9a-f]{32}")
#: The file that describes an entry; a folder without it is none of ours.
NOTE = "note.json"
#: Flags of os.open for a new file.
NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
_DRAFT, _REMOVED = re.compile(r"\.[0-9a-f]{32}\.new"), re.compile(r"\.[0-9a-f]{32}\.gone")
#: Drafts without a write for this many seconds are those of killed processes.
_LEFT_S = 3600.0
#: Seconds that a process waits for others that look for room.
_TURN_S = 30.0
_OUT_OF_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class Entries:
    """The entries of one folder, in a folder of this user's alone. Thread-safe and process-safe.

    The system's errors are JobsNotKept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self) -> Path:
        """A new draft, whose folder this user alone can read."""
        with told(self.folder):
            check_private(self.folder.parent)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            draft = self.folder / f".{secrets.token_hex(16)}.new"
            os.mkdir(draft, 0o700)
        return draft

    def publish(self, draft: Path, note: bytes) -> str:
        """Make a draft an entry with this note; returns its id."""
        name = draft.name[1:-4]
        with told(self.folder):
            write(draft / NOTE, [note])
            platforms.replace(draft, self.folder / name)
        return name

    def find(self, name: str) -> Path | None:
        """The entry's folder; None for an unknown id."""
        if not ID.fullmatch(name):
            return None
        path = self.folder / name
        with told(self.folder):
            return path if (path / NOTE).is_file() else None

    def names(self) -> list[str]:
        """The ids of all entries, and of folders of others that look like one."""
        return self._names(ID)

    def note(self, name: str) -> bytes | None:
        """An entry's note; None for an unknown id, also of an entry that is removed meanwhile."""
        path = self.find(name)
        with told(self.folder):
            try:
                return None if path is None else (path / NOTE).read_bytes()
            except FileNotFoundError:
                return None

    def notes(self) -> Iterator[bytes]:
        """The notes of all entries."""
        return (note for name in self.names() if (note := self.note(name)) is not None)

    def remove(self, name: str) -> bool:
        """Remove an entry; whether it existed. A process that is killed meanwhile leaves no half of it."""
        path = self.find(name)
        if path is None:
            return False
        gone = self.folder / f".{name}.gone"
        with told(self.folder):
            try:
                platforms.replace(path, gone)
            except FileNotFoundError:
                return False  # another process was quicker
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def discard(self, draft: Path) -> None:
        """Delete a draft."""
        shutil.rmtree(draft, ignore_errors=True)

    def sweep(self) -> None:
        """Delete what killed processes have left."""
        for name in self._names(_REMOVED):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in self._names(_DRAFT):
            if time.time() - _last_write(self.folder / name) > _LEFT_S:
                shutil.rmtree(self.folder / name, ignore_errors=True)
                logger.info("Deleted the unfinished upload of an ended process in {}", self.folder)

    def _names(self, form: re.Pattern[str]) -> list[str]:
        with told(self.folder):
            try:
                return sorted(name for name in os.listdir(self.folder) if form.fullmatch(name))
            except FileNotFoundError:
                return []  # the first entry creates it


def decoded(note: bytes | None, kind: type[T]) -> T | None:
    """An entry's note; None for a damaged one, whose entry counts as none of ours."""
    try:
        return None if note is None else msgspec.json.decode(note, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _last_write(draft: Path) -> float:
    """The time of the last write to a draft's files; now if it is gone."""
    try:
        return max(entry.stat().st_mtime for entry in [draft, *draft.iterdir()])
    except FileNotFoundError:
        return time.time()


def check_private(folder: Path) -> None:
    """Make the folder. Raises PermissionError if others can add or read something there, and OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fault = platforms.fault_of_trust(folder.stat(), 0o077)
    if fault is not None:
        raise PermissionError(errno.EPERM, f"others can read or own the folder ({fault}; chmod 700)")


def write(path: Path, pieces: Iterable[bytes]) -> None:
    """Make the file, whole for every reader. One process at a time may write it. Raises OSError."""
    draft = path.with_name(f"{path.name}.new")
    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    platforms.replace(draft, path)


def mark(path: Path) -> None:
    """Make an empty file, if it is not there. Raises OSError."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Exclude other processes that look for room in the folder."""
    with told(folder):
        check_private(folder)
        lock = FileLock(folder / ".room.lock", mode=0o600, timeout=_TURN_S)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Turn the system's errors into ours."""
    try:
        yield
    except EmbedshareError:
        raise
    except (OSError, Timeout) as error:
        if isinstance(error, OSError) and error.errno in _OUT_OF_ROOM:
            raise NoRoomForJobs(
                f"the disk of {folder} is full: free some, delete jobs, or set EMBEDDING_JOBS_DIR"
            ) from None
        reason = getattr(error, "strerror", None) or error
        raise JobsNotKept(
            f"jobs cannot be kept in {folder}: {reason}; set EMBEDDING_JOBS_DIR to another folder"
        ) from None
