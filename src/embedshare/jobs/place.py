"""The folder of jobs, and its parts for a process that uses it."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from embedshare.ipc import authkey
from embedshare.jobs.files import FileStore
from embedshare.jobs.room import Room
from embedshare.jobs.store import JobStore
from embedshare.settings import Settings


def folder(settings: Settings) -> Path:
    """The folder of jobs and uploaded files: EMBEDDING_JOBS_DIR, else one next to the key's file."""
    return Path(settings.jobs.directory or authkey.key_file(settings).with_name("jobs"))


def store(settings: Settings) -> JobStore:
    """The jobs of this machine."""
    room = Room(folder(settings), settings.jobs.max_bytes)
    return JobStore(room.folder / "jobs", room)


def files(settings: Settings) -> FileStore:
    """The uploaded files of this machine."""
    room = Room(folder(settings), settings.jobs.max_bytes)
    return FileStore(room.folder / "files", room)


def runner_lock(settings: Settings) -> FileLock:
    """The lock that the only runner of the folder holds; the system frees it when its holder dies."""
    return FileLock(folder(settings) / ".runner.lock", mode=0o600)


def has_runner(settings: Settings) -> bool:
    """Whether a process computes the jobs of this folder."""
    if not folder(settings).exists():  # else the lock would make it, readable by others
        return False
    try:
        with runner_lock(settings).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False  # it cannot be read, which the runner's log says
