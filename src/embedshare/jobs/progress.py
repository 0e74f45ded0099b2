"""A job's state, derived from the files that are there. Pure: no clock, no files."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from embedshare.jobs.spec import Failure, JobSpec

#: The parts over which the rate is measured.
_RECENT = 8


class State(str, Enum):
    """The states of a job; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing is computed any more."""
        return self not in (State.QUEUED, State.RUNNING)


class Seen(NamedTuple):
    """The files of a job: when it began, ended each part, failed and was cancelled."""

    began: float | None = None
    parts: Sequence[float] = ()
    failed: float | None = None
    failure: Failure | None = None
    cancelled: float | None = None


class Progress(NamedTuple):
    """A job's state; `done` and `left` in lines, `rate` in lines per second, None while unknown."""

    state: State
    done: int
    left: int
    rate: float | None
    eta_s: float | None
    began: float | None
    ended: float | None
    failure: Failure | None


def progress(job: JobSpec, seen: Seen, now: float) -> Progress:
    """The progress of `job`. A job whose parts are all there is done, whatever came meanwhile."""
    state, ended = _state(job, seen)
    done = job.lines_before(len(seen.parts))
    left = job.lines - done
    rate = _rate(job, seen, now) if state is State.RUNNING else None
    eta_s = left / rate if rate else None
    failure = seen.failure if state is State.FAILED else None
    return Progress(state, done, left, rate, eta_s, seen.began, ended, failure)


def _state(job: JobSpec, seen: Seen) -> tuple[State, float | None]:
    if job.parts and len(seen.parts) == job.parts:
        return State.DONE, max(seen.parts)
    if seen.failed is not None:
        return State.FAILED, seen.failed
    if seen.cancelled is not None:
        return State.CANCELLED, seen.cancelled
    return (State.QUEUED if seen.began is None else State.RUNNING), None


def _rate(job: JobSpec, seen: Seen, now: float) -> float | None:
    """Lines per second of the last parts; less while the part under way takes long."""
    count = len(seen.parts)
    first = max(0, count - _RECENT)
    since = seen.began if first == 0 else seen.parts[first - 1]
    if not count or since is None:
        return None
    elapsed = seen.parts[-1] - since
    if now - seen.parts[-1] > 2 * elapsed / (count - first):
        elapsed = now - since
    return (job.lines_before(count) - job.lines_before(first)) / max(elapsed, 1e-3)
