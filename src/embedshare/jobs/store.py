"""Jobs on disk: one folder each, with its description, its input and the finished parts of its result.

A part is written aside and renamed, so that a killed process loses at most the part under way. A job's state
follows from the files that are there. The store knows nothing of HTTP or models.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import Any

import msgspec

from embedshare.errors import JobEnded, JobsNotKept, UnknownJob
from embedshare.jobs import entries, parts
from embedshare.jobs.entries import Entries
from embedshare.jobs.parts import Part
from embedshare.jobs.progress import Progress, Seen, State, progress
from embedshare.jobs.room import Room
from embedshare.jobs.spec import Failure, JobLine, JobSpec, Kind, Options

#: A part has at most this many inputs and bytes of input, but a line is never cut.
PART_INPUTS = 1024
PART_BYTES = 4 << 20
#: Bytes of a vector whose dimension is not known yet.
UNKNOWN_ROW_BYTES = 4 * 1024
_INPUT = "input.jsonl"
_PART = re.compile(r"part-(\d{6,})")
_BEGAN, _CANCELLED, _FAILED = "began", "cancelled", "failed.json"


class JobDraft:
    """A job whose input is being written."""

    def __init__(self, folder: Path, file: BufferedWriter) -> None:
        self.folder = folder
        self._file = file
        self.lines = self.inputs = self._part_inputs = 0
        self.starts: list[int] = []
        self.offsets: list[int] = [0]

    def add(self, line: JobLine) -> None:
        """Append a line. Raises OSError."""
        written = msgspec.json.encode(line) + b"\n"
        size = self.offsets[-1] - self.offsets[-2] if self.starts else 0
        is_full = self._part_inputs + len(line.inputs) > PART_INPUTS or size + len(written) > PART_BYTES
        if not self.starts or (is_full and self.lines > self.starts[-1]):
            self.starts.append(self.lines)
            self.offsets.append(self.offsets[-1])
            self._part_inputs = 0
        self._file.write(written)
        self.offsets[-1] += len(written)
        self.lines += 1
        self.inputs += len(line.inputs)
        self._part_inputs += len(line.inputs)

    def finish(self) -> None:
        """Put the input on the disk. Raises OSError."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class JobStore:
    """The jobs of one folder. Thread-safe and process-safe; one process at a time may write parts."""

    def __init__(self, folder: Path, room: Room) -> None:
        self._entries = Entries(folder)
        self._room = room
        self._specs: dict[str, JobSpec] = {}
        self._read_line = msgspec.json.Decoder(JobLine)

    @contextmanager
    def draft(self, size: int = 0) -> Iterator[JobDraft]:
        """A new job, of which nothing stays unless it is published.

        Raises NoRoomForJobs if the disk has no room for `size` bytes.
        """
        self._room.check_free(size)
        folder = self._entries.begin()
        try:
            with entries.told(self._entries.folder):
                descriptor = os.open(folder / _INPUT, entries.NEW, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    yield JobDraft(folder, file)
        finally:
            self._entries.discard(folder)

    def publish(
        self,
        draft: JobDraft,
        owner: str,
        kind: Kind,
        options: Options,
        *,
        row_bytes: int = UNKNOWN_ROW_BYTES,
        by_line: bool = False,
        about: dict[str, Any] | None = None,
        failure: Failure | None = None,
    ) -> JobSpec:
        """Make a draft a job that waits, or one that has failed already.

        `row_bytes`: the expected bytes of a vector. Raises TooManyJobs, NoRoomForJobs, JobsNotKept.
        """
        with entries.told(self._entries.folder):
            draft.finish()
            if failure is not None:
                entries.write(draft.folder / _FAILED, [msgspec.json.encode(failure)])
        result_bytes = 0 if failure is not None else draft.inputs * (row_bytes + 4)
        job = JobSpec(
            draft.folder.name[1:-4], owner, kind, time.time(), options, draft.lines, draft.starts,
            draft.offsets, draft.offsets[-1] + result_bytes, by_line, about or {},
        )  # fmt: skip
        with self._room.claimed(owner, job.held_bytes, result_bytes):
            self._entries.publish(draft.folder, msgspec.json.encode(job))
        return job

    def jobs(self, owner: str | None = None) -> list[JobSpec]:
        """The jobs of an owner, or of all, oldest first."""
        known, found = self._specs, dict[str, JobSpec]()
        for name in self._entries.names():
            job = known.get(name) or self._spec(name)
            if job is not None:
                found[name] = job
        self._specs = found
        shown = [job for job in found.values() if owner is None or job.owner == owner]
        return sorted(shown, key=lambda job: (job.created, job.id))

    def job(self, name: str, owner: str | None = None) -> JobSpec:
        """The job of an id. Raises UnknownJob, also for another owner's."""
        job = self._spec(name)
        if job is None or owner not in (None, job.owner):
            raise _unknown(name)
        return job

    def progress(self, job: JobSpec) -> Progress:
        """The job's state, and how far it is. Raises UnknownJob."""
        return progress(job, self._seen(job), time.time())

    def begin(self, job: JobSpec) -> None:
        """Note that the job's first part is under way. Raises UnknownJob."""
        with self._within(job) as folder:
            if not (folder / _BEGAN).exists():
                entries.mark(folder / _BEGAN)

    def cancel(self, job: JobSpec) -> None:
        """Have the job end after its part under way; nothing changes for a cancelled one.

        Raises JobEnded, UnknownJob.
        """
        state = self.progress(job).state
        if state in (State.DONE, State.FAILED):
            raise JobEnded(
                f"the job has ended ({state.value}), so it cannot be cancelled", status=state.value
            )
        with self._within(job) as folder:
            entries.mark(folder / _CANCELLED)

    def fail(self, job: JobSpec, failure: Failure) -> None:
        """End the job by an error. Raises UnknownJob."""
        with self._within(job) as folder:
            entries.write(folder / _FAILED, [msgspec.json.encode(failure)])

    def remove(self, job: JobSpec) -> None:
        """Delete the job and its result. Raises UnknownJob."""
        if not self._entries.remove(job.id):
            raise _unknown(job.id)

    def lines(self, job: JobSpec, part: int) -> list[JobLine]:
        """The input of a part. Raises UnknownJob."""
        begin, end = job.offsets[part], job.offsets[part + 1]
        with self._within(job) as folder, (folder / _INPUT).open("rb") as file:
            file.seek(begin)
            content = file.read(end - begin)
        return self._read_line.decode_lines(content)

    def write(self, job: JobSpec, number: int, part: Part) -> None:
        """Add a finished part, whole or not at all. Raises UnknownJob, NoRoomForJobs."""
        with self._within(job) as folder:
            entries.write(folder / f"part-{number:06}", parts.encoded(part))

    def part(self, job: JobSpec, number: int) -> Part:
        """A finished part. Raises UnknownJob."""
        with self._within(job) as folder:
            return parts.read(folder / f"part-{number:06}")

    def failed_lines(self, job: JobSpec, number: int) -> int:
        """The lines of a finished part that ended by an error. Raises UnknownJob."""
        with self._within(job) as folder:
            return parts.failed_lines(folder / f"part-{number:06}")

    def result_bytes(self, job: JobSpec) -> int:
        """The bytes of the finished parts. Raises UnknownJob."""
        with self._within(job) as folder, os.scandir(folder) as found:
            return sum(os.stat(entry.path).st_size for entry in found if _PART.fullmatch(entry.name))

    def parts_done(self, job: JobSpec) -> int:
        """The number of finished parts; they are computed in order. Raises UnknownJob."""
        return len(self._seen(job).parts)

    def mark(self, job: JobSpec, mark: str) -> None:
        """Set a mark of the creator's own. Raises UnknownJob."""
        with self._within(job) as folder:
            entries.mark(folder / f"mark-{mark}")

    def is_marked(self, job: JobSpec, mark: str) -> bool:
        """Whether a mark is set. Raises UnknownJob."""
        with self._within(job) as folder:
            return (folder / f"mark-{mark}").exists()

    def sweep(self, kept_s: float) -> None:
        """Delete the jobs that ended `kept_s` seconds ago, and what killed processes have left."""
        for job in self.jobs():
            try:
                ended = self.progress(job).ended
                if ended is not None and time.time() - ended > kept_s:
                    self.remove(job)
            except UnknownJob:
                pass  # deleted meanwhile
        self._entries.sweep()

    def _spec(self, name: str) -> JobSpec | None:
        return entries.decoded(self._entries.note(name), JobSpec)

    def _seen(self, job: JobSpec) -> Seen:
        times: dict[str, float] = {}
        with self._within(job) as folder, os.scandir(folder) as found:
            for entry in found:
                if _PART.fullmatch(entry.name) or entry.name in (_BEGAN, _CANCELLED, _FAILED):
                    times[entry.name] = os.stat(
                        entry.path
                    ).st_mtime  # a DirEntry's own is outdated on Windows
        finished: list[float] = []
        while f"part-{len(finished):06}" in times and len(finished) < job.parts:
            finished.append(times[f"part-{len(finished):06}"])
        failure = self._failure(job) if _FAILED in times else None
        return Seen(times.get(_BEGAN), finished, times.get(_FAILED), failure, times.get(_CANCELLED))

    def _failure(self, job: JobSpec) -> Failure:
        with self._within(job) as folder:
            return msgspec.json.decode((folder / _FAILED).read_bytes(), type=Failure)

    @contextmanager
    def _within(self, job: JobSpec) -> Iterator[Path]:
        """The job's folder. Raises UnknownJob if it is gone, JobsNotKept."""
        try:
            yield self._entries.folder / job.id
        except FileNotFoundError:
            raise _unknown(job.id) from None
        except msgspec.MsgspecError:
            raise JobsNotKept("a job is damaged: delete it and create it again") from None
        except OSError as error:
            with entries.told(self._entries.folder):
                raise error


def _unknown(name: str) -> UnknownJob:
    return UnknownJob(f"there is no job {name[:100]!r} here: it was deleted, or is another key's")
