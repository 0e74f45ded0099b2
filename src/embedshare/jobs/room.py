"""The room that a caller's jobs and files may take, all of a folder together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from embedshare.errors import EmbedshareError, NoRoomForJobs, TooManyJobs
from embedshare.jobs import entries
from embedshare.jobs.entries import Entries

#: The most jobs and files of one caller.
MOST = 200
#: A caller's bytes are at most this many times those of one body.
MOST_BODIES = 8
#: Bytes that jobs leave free on the disk.
LEFT_FREE = 256 << 20


class Held(msgspec.Struct):
    """What a job or a file takes: its owner, and its bytes with those of its result."""

    owner: str
    held_bytes: int


class Claim(NamedTuple):
    """A new job or file: its owner, its bytes, and those of them that are still to be written."""

    owner: str
    size: int
    to_write: int


class Room:
    """The room in `folder`, where the entries `kinds` are; `max_bytes`: those of one body."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._most_bytes = MOST_BODIES * max_bytes
        self._kinds: list[Entries] = [Entries(folder / name) for name in ("jobs", "files")]

    @contextmanager
    def claimed(self, owner: str, size: int, to_write: int = 0) -> Iterator[None]:
        """Exclude other claims, while the caller publishes what it has claimed room for.

        Raises TooManyJobs, NoRoomForJobs, JobsNotKept.
        """
        with entries.alone(self.folder):
            notes = (note for kind in self._kinds for note in kind.notes())
            held = [one for note in notes if (one := entries.decoded(note, Held)) is not None]
            with entries.told(self.folder):
                free = shutil.disk_usage(self.folder).free
            refusal = refused(held, Claim(owner, size, to_write), MOST, self._most_bytes, free)
            if refusal is not None:
                raise refusal
            yield

    def check_free(self, size: int) -> None:
        """Raise NoRoomForJobs if the disk has no room for `size` bytes more."""
        with entries.told(self.folder):
            entries.check_private(self.folder)
            refusal = _without_room(size, shutil.disk_usage(self.folder).free)
        if refusal is not None:
            raise refusal


def refused(
    held: Sequence[Held], claim: Claim, most: int, most_bytes: int, free: int
) -> EmbedshareError | None:
    """The reason why the claim cannot be granted; None if it can."""
    own = [one.held_bytes for one in held if one.owner == claim.owner]
    if len(own) >= most:
        return TooManyJobs(f"this caller has {len(own):,} jobs and files; {most:,} are allowed: delete some")
    if sum(own) + claim.size > most_bytes:
        return TooManyJobs(
            f"this caller's jobs and files take {sum(own):,} bytes with their results; with "
            f"{claim.size:,} more they would exceed {most_bytes:,}: delete some (EMBEDDING_MAX_JOB_BYTES)"
        )
    return _without_room(claim.to_write, free)


def _without_room(size: int, free: int) -> NoRoomForJobs | None:
    if free - size >= LEFT_FREE:
        return None
    return NoRoomForJobs(
        f"the disk of jobs has {free:,} bytes free, and {size:,} would be written: free some, delete jobs, "
        "or set EMBEDDING_JOBS_DIR"
    )
