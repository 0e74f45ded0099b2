"""Jobs over HTTP: long lists of texts that are embedded in the background, and their results."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from flask import Blueprint, Response, request
from msgspec import Meta
from werkzeug.exceptions import UnsupportedMediaType

from embedshare.errors import (
    EmbedshareError,
    InvalidInput,
    JobEnded,
    JobNotDone,
    JobsDisabled,
    JobsNotKept,
    NoRoomForJobs,
    NotServed,
    TooLarge,
    TooManyJobs,
    UnknownJob,
    UnknownModel,
)
from embedshare.identity import ModelDescription
from embedshare.jobs.progress import State
from embedshare.jobs.spec import JobLine, JobSpec, Kind, Options
from embedshare.jobs.store import UNKNOWN_ROW_BYTES, JobDraft, JobStore
from embedshare.settings import Settings
from embedshare.telemetry import usage
from embedshare.web import body, errors, openapi
from embedshare.web.apis.embed import dumped
from embedshare.web.errors import ServiceError
from embedshare.web.guards import auth
from embedshare.web.guards.request_limits import RequestLimits
from embedshare.web.lines import lines
from embedshare.web.model_client import ModelClient, served_name
from embedshare.web.models import Models
from embedshare.web.routes import Tag

JSON_LINES, BYTES = "application/jsonl", "application/octet-stream"
#: Names of JSON lines in use, and those of clients that do not say what they send.
_ACCEPTED = (JSON_LINES, "application/x-ndjson", "application/x-jsonlines", "text/plain", BYTES, "")
#: Bytes of a message around a text.
_AROUND = 4096
_EXAMPLE = '"a text" or {"text": "a text"}'


class _TextLine(msgspec.Struct):
    text: str


class JobOptions(msgspec.Struct):
    """The parameters of a new job; see docs/operations.md."""

    model: str | None = None
    prompt_name: str | None = None
    task: str | None = None
    normalize: bool = True
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class JobError(msgspec.Struct):
    """The error that ended a job; `code` is its kind, `line` the input's line that caused it."""

    code: str
    message: str
    line: int | None


class Job(msgspec.Struct):
    """A job. `total`, `done` and `left` count its lines, `rate` is in lines per second.

    Times are in seconds since 1970. `kind`: `openai` for one created through `/v1/batches`. An ended job is
    deleted at `expires_at`.
    """

    id: str
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    kind: Kind
    total: int
    done: int
    left: int
    rate: float | None
    eta_s: float | None
    model: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None
    error: JobError | None


class Jobs(msgspec.Struct):
    """The caller's jobs, oldest first."""

    jobs: list[Job]


_DECLARED: dict[str, Any] = {"scopes": ("embed",), "form": ServiceError, "tag": Tag.JOBS}
_OF_THE_STORE = (JobsDisabled, JobsNotKept)
_OF_A_JOB = (UnknownJob, *_OF_THE_STORE)


def blueprint(store: JobStore | None, models: Models, settings: Settings) -> Blueprint:
    """`/api/v1/jobs` and its subpaths; `store` is None in a worker that takes no jobs."""
    routes = Blueprint("jobs", __name__)
    kept_s = settings.jobs.kept_s

    @routes.post("/api/v1/jobs", large_limit="EMBEDDING_MAX_JOB_BYTES", **_DECLARED)
    @openapi.describe(
        {202: Job},
        errors=(InvalidInput, TooLarge, UnsupportedMediaType, UnknownModel, TooManyJobs, NoRoomForJobs,
                *_OF_THE_STORE, *errors.OF_THE_MODEL),
        body=str, media_types=(JSON_LINES, "text/plain"),
        query={"model": str, "prompt_name": str, "task": str, "normalize": bool,
               "dimensions": Annotated[int, Meta(ge=1)]},
    )  # fmt: skip
    def create_job() -> tuple[Response, int, dict[str, str]]:
        """Create a job from lines of JSON, each a text or an object with the field `text`.

        The whole input is checked before the answer; a line that is wrong is an error with its number, and
        then there is no job.
        """
        jobs = _store(store)
        asked = _options(request.args.to_dict())
        _check_type()
        model_client = models.of(asked.model)
        description = known_model(model_client)
        _check(asked, description)
        with jobs.draft(request.content_length or 0) as draft:
            _read(draft, settings)
            options = Options(
                served_name(model_client), asked.prompt_name, asked.task, asked.normalize, asked.dimensions
            )
            about = {"model": None if description is None else description.model_name}
            job = jobs.publish(
                draft, auth.owner(), "texts", options,
                row_bytes=row_bytes(asked.dimensions, description), about=about,
            )  # fmt: skip
        usage.of_texts(draft.inputs)
        return body.answer(_view(jobs, job, kept_s)), 202, {"Location": f"/api/v1/jobs/{job.id}"}

    @routes.get("/api/v1/jobs", **_DECLARED)
    @openapi.describe({200: Jobs}, errors=_OF_THE_STORE)
    def list_jobs() -> Response:
        """The jobs of the caller's key."""
        jobs = _store(store)
        return body.answer(
            Jobs(list(views(jobs, jobs.jobs(auth.owner()), lambda job: _view(jobs, job, kept_s))))
        )

    @routes.get("/api/v1/jobs/<job>", **_DECLARED)
    @openapi.describe({200: Job}, errors=_OF_A_JOB)
    def show_job(job: str) -> Response:
        """A job's state: the done and left lines, their rate, and the expected seconds to its end."""
        jobs = _store(store)
        return body.answer(_view(jobs, jobs.job(job, auth.owner()), kept_s))

    @routes.get("/api/v1/jobs/<job>/result", **_DECLARED)
    @openapi.describe(
        {200: {JSON_LINES: str, BYTES: bytes}},
        errors=(InvalidInput, JobNotDone, *_OF_A_JOB),
        query={"format": Literal["jsonl", "npy"]},
    )
    def job_result(job: str) -> Response:
        """The vectors of a job that is done, in its lines' order.

        `jsonl`: lines such as `{"index": 0, "embedding": [...], "tokens": 4}`. `npy`: one float32 array
        (lines, dimension), as `numpy.load` reads it.
        """
        jobs = _store(store)
        form = request.args.get("format", "jsonl")
        if form not in ("jsonl", "npy"):
            raise InvalidInput(f"`format` is {form[:100]!r}; jsonl and npy are allowed")
        found = jobs.job(job, auth.owner())
        _check_done(found, jobs.progress(found).state)
        return _as_npy(jobs, found) if form == "npy" else _as_json_lines(jobs, found)

    @routes.post("/api/v1/jobs/<job>/cancel", **_DECLARED)
    @openapi.describe({200: Job}, errors=(JobEnded, *_OF_A_JOB))
    def cancel_job(job: str) -> Response:
        """End a job after its part under way. Nothing changes for a cancelled one."""
        jobs = _store(store)
        found = jobs.job(job, auth.owner())
        jobs.cancel(found)
        return body.answer(_view(jobs, found, kept_s))

    @routes.delete("/api/v1/jobs/<job>", **_DECLARED)
    @openapi.describe({204: {}}, errors=_OF_A_JOB)
    def delete_job(job: str) -> tuple[str, int]:
        """Delete a job, its input and its result, whether it has ended or not."""
        jobs = _store(store)
        jobs.remove(jobs.job(job, auth.owner()))
        return "", 204

    return routes


def known_model(model_client: ModelClient) -> ModelDescription | None:
    """The model's description, if it is known now: a job waits for the server.

    Raises NotServed for a model that gives no embeddings.
    """
    try:
        known = model_client.known
    except EmbedshareError:
        return None
    if known is not None and "dense" not in known.outputs:
        raise NotServed(f"{known.model_name} does not give embeddings; it gives {known.can}")
    return known


def row_bytes(dimensions: int | None, model: ModelDescription | None) -> int:
    """The expected bytes of a vector."""
    dimension = dimensions or (None if model is None else model.dimension)
    return UNKNOWN_ROW_BYTES if dimension is None else 4 * dimension


def views(store: JobStore, found: list[JobSpec], view: Callable[[JobSpec], Any]) -> Iterator[Any]:
    """The views of jobs, without those that are deleted meanwhile."""
    for job in found:
        try:
            yield view(job)
        except UnknownJob:
            pass


def _store(store: JobStore | None) -> JobStore:
    if store is None:
        raise JobsDisabled("this worker takes no jobs: EMBEDDING_JOBS or USE_IPC_EMBEDDING is false")
    return store


def _options(given: dict[str, str]) -> JobOptions:
    try:
        return msgspec.convert(given, JobOptions, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"a parameter of the address is wrong: {error}") from None


def _check_type() -> None:
    if request.mimetype not in _ACCEPTED:
        raise UnsupportedMediaType(
            f"the body came as {request.mimetype}; send lines of JSON, with Content-Type: {JSON_LINES}"
        )


def _check(asked: JobOptions, model: ModelDescription | None) -> None:
    """Raise InvalidInput for options that the model would refuse."""
    if model is None:
        return
    if asked.dimensions is not None and asked.dimensions > model.dimension:
        raise InvalidInput(
            f"dimensions is {asked.dimensions}; {model.model_name} allows 1 to {model.dimension}"
        )
    if asked.prompt_name is not None and asked.prompt_name not in model.prompts:
        raise InvalidInput(f"unknown prompt {asked.prompt_name[:100]!r}; the model has {list(model.prompts)}")


def _read(draft: JobDraft, settings: Settings) -> None:
    """Append the body's lines. Raises InvalidInput, TooLarge, with the number of the wrong line."""
    decoder = msgspec.json.Decoder(str | _TextLine)
    limits = RequestLimits(1, settings.web.max_text_chars)
    longest = settings.server.max_message_bytes - _AROUND
    for number, line in enumerate(lines(request.stream.read, longest), 1):
        if number > settings.jobs.max_texts:
            raise TooLarge(f"the body has more lines than EMBEDDING_MAX_JOB_TEXTS allows, {number - 1:,}")
        text = _text(decoder, line, number)
        limits.check([text], f"line {number}: text")
        draft.add(JobLine([text]))
    if not draft.lines:
        raise InvalidInput(f"the body has no lines; send lines of JSON such as {_EXAMPLE}")


def _text(decoder: msgspec.json.Decoder[str | _TextLine], line: bytes, number: int) -> str:
    try:
        found = decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = body.reason(error, line)
        raise InvalidInput(f"line {number:,} must be JSON such as {_EXAMPLE}: {reason}") from None
    return found if isinstance(found, str) else found.text


def _check_done(job: JobSpec, state: State) -> None:
    if job.kind != "texts":
        raise JobNotDone("this job was created through /v1/batches: read its output file", status=state.value)
    if state is not State.DONE:
        what = "has ended without a result" if state.is_final else "has no result yet"
        raise JobNotDone(f"the job {what}, it is {state.value}", status=state.value)


def _view(store: JobStore, job: JobSpec, kept_s: float) -> Job:
    now = store.progress(job)
    error = None
    if now.failure is not None:
        error = JobError(errors.service_code(now.failure.type), now.failure.message, now.failure.line)
    return Job(
        job.id, now.state.value, job.kind, job.lines, now.done, now.left,
        None if now.rate is None else round(now.rate, 2),
        None if now.eta_s is None else round(now.eta_s, 1),
        job.about.get("model"), job.created, now.began, now.ended,
        None if now.ended is None else now.ended + kept_s,
        error,
    )  # fmt: skip


def _as_json_lines(store: JobStore, job: JobSpec) -> Response:
    first = store.part(job, 0)  # an error of the store is answered, and does not break the body off

    def written() -> Iterator[bytes]:
        index = 0
        for number in range(job.parts):
            part = first if number == 0 else store.part(job, number)
            found = []
            for line in part.lines:
                one = {"index": index, "embedding": line.rows[0], "tokens": int(line.tokens[0])}
                found.append(dumped(one))
                index += 1
            yield b"\n".join([*found, b""])

    return Response(written(), content_type=JSON_LINES)


def _as_npy(store: JobStore, job: JobSpec) -> Response:
    first = store.part(job, 0)
    dimension = first.lines[0].rows.shape[1]
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (job.lines, dimension)}
    )

    def written() -> Iterator[bytes]:
        yield head.getvalue()
        for number in range(job.parts):
            part = first if number == 0 else store.part(job, number)
            yield np.concatenate([line.rows for line in part.lines]).astype("<f4", copy=False).tobytes()

    response = Response(written(), content_type=BYTES)
    response.content_length = len(head.getvalue()) + 4 * job.lines * dimension
    response.headers["Content-Disposition"] = f"attachment; filename={job.id}.npy"
    return response
