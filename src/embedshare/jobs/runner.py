"""Computes the jobs of a store, one part after another; several runners must not share a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import numpy as np
from loguru import logger

from embedshare.backoff import Backoff
from embedshare.calls import EmbedRequest, EmbedResult, Inputs, are_tokens
from embedshare.errors import (
    EmbedshareError,
    InvalidInput,
    JobsNotKept,
    ModelMismatch,
    ModelSwapped,
    ProviderFailed,
    ProviderRefused,
    UnknownJob,
    UnknownModel,
)
from embedshare.identity import ModelDescription
from embedshare.jobs.parts import NO_ROWS, NO_TOKENS, Line, Part
from embedshare.jobs.progress import State
from embedshare.jobs.spec import Failure, JobLine, JobSpec
from embedshare.jobs.store import JobStore
from embedshare.jobs.turns import next_job

#: Pauses of a job whose part could not be computed, such as without a model server.
PAUSES = Backoff(0.5, 15.0, jitter=0.5)
#: Faults in a row, of the model's runtime for example, after which a job fails.
MOST_FAULTS = 3
#: Seconds between two looks for jobs whose time is over.
SWEEP_EVERY_S = 60.0

#: The vectors of a request, of the model with this name.
Embed = Callable[[str, EmbedRequest], EmbedResult]


class _Pause(NamedTuple):
    failures: int
    faults: int
    until: float


class _Model(NamedTuple):
    identity: str
    name: str


class Runner:
    """`embed` computes, and raises the client's errors; `kept_s`: seconds that a finished job is kept.

    A job waits for as long as an error is temporary: no part is lost, and none is computed by another model.
    """

    def __init__(
        self,
        store: JobStore,
        embed: Embed,
        kept_s: float,
        clock: Callable[[], float] = time.monotonic,
        sweep: Callable[[float], None] = lambda kept_s: None,
    ) -> None:
        """`sweep` deletes what else is kept for `kept_s` seconds."""
        self._store = store
        self._embed = embed
        self._kept_s = kept_s
        self._clock = clock
        self._sweep_others = sweep
        self._swept = float("-inf")
        self._turn = 0
        self._turns: dict[str, int] = {}
        self._pauses: dict[str, _Pause] = {}
        self._ended: set[str] = set()
        self._models: dict[str, _Model] = {}

    def step(self) -> bool:
        """Compute one part; whether there was one. Raises JobsNotKept."""
        self._sweep()
        job = next_job(self._waiting(), self._turns)
        if job is None:
            return False
        self._turn += 1
        self._turns[job.owner] = self._turn
        try:
            self._compute_next(job)
            self._pauses.pop(job.id, None)
        except UnknownJob:
            pass  # deleted meanwhile
        except EmbedshareError as error:
            self._failed(job, error)
        except Exception as error:  # a fault here must not hold up the other jobs
            logger.opt(exception=error).error("Failed to compute a part of job {}", job.id)
            self._fail(job, error)
        return True

    def _sweep(self) -> None:
        if self._clock() - self._swept < SWEEP_EVERY_S:
            return
        self._swept = self._clock()
        self._store.sweep(self._kept_s)
        self._sweep_others(self._kept_s)

    def _waiting(self) -> list[JobSpec]:
        """The jobs with a part to compute now."""
        jobs = self._store.jobs()
        self._ended &= {job.id for job in jobs}
        return [job for job in jobs if self._waits(job)]

    def _waits(self, job: JobSpec) -> bool:
        if job.id in self._ended or (job.id in self._pauses and self._clock() < self._pauses[job.id].until):
            return False
        try:
            state = self._store.progress(job).state
        except UnknownJob:
            return False
        if state.is_final:
            self._ended.add(job.id)
            self._pauses.pop(job.id, None)
            self._models.pop(job.id, None)
            logger.info("Ended job {} ({}, {:,} lines)", job.id, state.value, job.lines)
        return not state.is_final

    def _compute_next(self, job: JobSpec) -> None:
        number = self._store.parts_done(job)
        if not number:
            self._store.begin(job)
            logger.info("Starting job {} ({:,} lines in {:,} parts)", job.id, job.lines, job.parts)
        part = self._computed(job, self._store.lines(job, number))
        self._check_identity(job, number, part)
        if self._store.progress(job).state is not State.CANCELLED:
            self._store.write(job, number, part)

    def _check_identity(self, job: JobSpec, number: int, part: Part) -> None:
        """Raise ModelMismatch if an earlier part is another model's: one result never mixes two."""
        if not part.identity:
            return
        if job.id not in self._models:
            self._models[job.id] = self._model_before(job, number) or _Model(part.identity, part.model_name)
        first = self._models[job.id]
        if first.identity != part.identity:
            raise ModelMismatch(
                f"the model changed while the job ran, from {first.name} to {part.model_name}: create the "
                "job again",
                expected=first.identity,
                found=part.identity,
            )

    def _model_before(self, job: JobSpec, number: int) -> _Model | None:
        """The model of the parts before this one; None if none was asked."""
        for earlier in range(number):
            part = self._store.part(job, earlier)
            if part.identity:
                return _Model(part.identity, part.model_name)
        return None

    def _computed(self, job: JobSpec, lines: Sequence[JobLine]) -> Part:
        results: dict[int, Line] = {}
        made: list[EmbedResult] = []
        for numbers in _alike(lines):
            for number, line, result in self._of_group(job, lines, numbers):
                results[number] = line
                made += [result] if result is not None else []
        for number, given in enumerate(lines):
            if given.failure is not None:
                results[number] = Line(NO_ROWS, NO_TOKENS, given.failure)
        identities = {result.identity for result in made}
        if len(identities) > 1:
            raise ModelSwapped("the model changed while a part was computed; it is computed again")
        name = made[0].description.model_name if made else ""
        return Part([results[number] for number in range(len(lines))], name, "".join(identities))

    def _of_group(
        self, job: JobSpec, lines: Sequence[JobLine], numbers: list[int]
    ) -> list[tuple[int, Line, EmbedResult | None]]:
        """The results of lines that one call can compute; each by itself if that call is refused."""
        try:
            return self._together(job, lines, numbers)
        except InvalidInput as error:
            if not job.by_line:
                raise
            if len(numbers) == 1:
                return [(numbers[0], Line(NO_ROWS, NO_TOKENS, _failure(error)), None)]
        return [found for number in numbers for found in self._of_group(job, lines, [number])]

    def _together(
        self, job: JobSpec, lines: Sequence[JobLine], numbers: list[int]
    ) -> list[tuple[int, Line, EmbedResult | None]]:
        options, dimensions = job.options, lines[numbers[0]].dimensions or job.options.dimensions
        inputs = [one for number in numbers for one in lines[number].inputs]
        result = self._embed(
            options.model,
            EmbedRequest(
                cast("Inputs", inputs),
                prompt_name=options.prompt_name,
                normalize=options.normalize,
                dimensions=dimensions,
                task=options.task,
            ),
        )
        _check_dimensions(dimensions, result.description)
        found: list[tuple[int, Line, EmbedResult | None]] = []
        start = 0
        tokens = np.array(result.token_counts, np.int32)
        for number in numbers:
            stop = start + len(lines[number].inputs)
            found.append((number, Line(result.rows[start:stop], tokens[start:stop]), result))
            start = stop
        return found

    def _failed(self, job: JobSpec, error: EmbedshareError) -> None:
        """Pause the job after a temporary error, else end it."""
        before = self._pauses.get(job.id, _Pause(0, 0, 0.0))
        faults = before.faults + _is_fault(error)
        is_final = isinstance(error, InvalidInput | UnknownModel | ModelMismatch)
        if is_final or faults >= MOST_FAULTS:
            self._fail(job, error)
            return
        failures = before.failures + 1
        pause_s = PAUSES.pause_s(failures, float(error.fields.get("retry_after_s", 0.0)))
        self._pauses[job.id] = _Pause(failures, faults, self._clock() + pause_s)
        if failures == 1:
            logger.warning("Waiting with job {} ({}: {})", job.id, type(error).__name__, error.message)

    def _fail(self, job: JobSpec, error: Exception) -> None:
        try:
            self._store.fail(job, _failure(error))
        except UnknownJob:
            pass  # deleted meanwhile


def _is_fault(error: EmbedshareError) -> bool:
    """Whether it is no error that passes by waiting, such as a remote service's that is away."""
    if isinstance(error, ProviderFailed):
        return isinstance(error, ProviderRefused)
    return error.http_status < 503 and not isinstance(error, JobsNotKept)


def _check_dimensions(dimensions: int | None, model: ModelDescription) -> None:
    """Raise InvalidInput for more than the model has; a server cuts vectors and does not refuse."""
    if dimensions is not None and dimensions > model.dimension:
        raise InvalidInput(f"dimensions is {dimensions}; {model.model_name} allows 1 to {model.dimension}")


def _failure(error: Exception) -> Failure:
    if isinstance(error, EmbedshareError):
        return Failure(type(error).__name__, error.message, error.http_status)
    return Failure("InternalServerError", "the part could not be computed; the log of jobs says why", 500)


def _alike(lines: Sequence[JobLine]) -> list[list[int]]:
    """The numbers of the lines that one call can compute: of one kind of inputs, and of one dimension."""
    groups: dict[tuple[bool, int | None], list[int]] = {}
    for number, line in enumerate(lines):
        if line.failure is None:
            tokens = are_tokens(cast("Inputs", line.inputs))
            groups.setdefault((tokens, line.dimensions), []).append(number)
    return list(groups.values())
