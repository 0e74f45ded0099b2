"""OpenAI's batches of embeddings, as jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from flask import Blueprint, Response
from msgspec import Meta
from werkzeug.exceptions import UnsupportedMediaType

from embedshare.errors import (
    InvalidInput,
    JobEnded,
    NoRoomForJobs,
    TooLarge,
    TooManyJobs,
    UnknownFile,
    UnknownJob,
)
from embedshare.jobs.progress import State
from embedshare.jobs.spec import Failure, JobSpec, Options
from embedshare.jobs.store import JobStore
from embedshare.settings import Settings
from embedshare.telemetry import usage
from embedshare.web import body, errors, openapi
from embedshare.web.apis import openai_files
from embedshare.web.apis.batch_lines import ENDPOINT, BatchReader, Fault, check_count
from embedshare.web.apis.jobs import known_model, row_bytes, views
from embedshare.web.apis.openai_files import OF_THE_STORE, Stores, checked, failed_lines, result_ids
from embedshare.web.errors import OpenAIError
from embedshare.web.guards import auth
from embedshare.web.guards.request_limits import RequestLimits
from embedshare.web.lines import lines
from embedshare.web.model_client import ModelClient, served_name
from embedshare.web.models import Models
from embedshare.web.routes import Tag

_STATUS = {
    State.QUEUED: "in_progress",
    State.RUNNING: "in_progress",
    State.DONE: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}
_PREFIX = "batch_"
_EXAMPLE = '{"input_file_id": "file-…", "endpoint": "/v1/embeddings", "completion_window": "24h"}'
_Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
_DECLARED: dict[str, Any] = {"scopes": ("embed",), "form": OpenAIError, "tag": Tag.OPENAI}


class BatchRequest(msgspec.Struct):
    """An uploaded file whose lines are requests of `POST /v1/embeddings`, all of one model."""

    input_file_id: str
    endpoint: Literal["/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: _Metadata | None = None


class BatchFaults(msgspec.Struct):
    """The faults of a batch's file, or the error that ended the batch."""

    object: Literal["list"]
    data: list[Fault]


class RequestCounts(msgspec.Struct):
    """The lines of a batch, and those that have a vector or an error."""

    total: int
    completed: int
    failed: int


class Batch(msgspec.Struct):
    """A batch. Times are in seconds since 1970; a batch never expires before it has ended."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    completed_at: int | None
    failed_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class Batches(msgspec.Struct):
    """The caller's batches, newest first."""

    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


def blueprint(stores: Stores | None, models: Models, settings: Settings) -> Blueprint:
    """`/v1/batches` and its subpaths; `stores` is None in a worker that takes no jobs."""
    routes = Blueprint("openai_batches", __name__)
    decoder = msgspec.json.Decoder(BatchRequest)
    limits = RequestLimits.of(settings)

    @routes.post("/v1/batches", **_DECLARED)
    @openapi.describe(
        {200: Batch},
        errors=(InvalidInput, TooLarge, UnsupportedMediaType, UnknownFile, TooManyJobs, NoRoomForJobs,
                *OF_THE_STORE, *errors.OF_THE_MODEL),
        body=BatchRequest,
    )  # fmt: skip
    def create_batch() -> Response:
        """Create a batch from an uploaded file.

        All lines are checked before the answer. Where one is no request the batch is `failed`, and `errors`
        names the lines. A request that `POST /v1/embeddings` would refuse is an error of its own.
        """
        there = checked(stores)
        asked = body.read(decoder, _EXAMPLE, untyped=True)
        reader = BatchReader(models, limits)
        job = _created(there, asked, reader, settings)
        if job is None:
            job = _refused(there, asked, reader)
        return body.answer(_view(there.jobs, job))

    @routes.get("/v1/batches", **_DECLARED)
    @openapi.describe(
        {200: Batches},
        errors=(InvalidInput, *OF_THE_STORE),
        query={"after": str, "limit": Annotated[int, Meta(ge=1, le=100)]},
    )
    def list_batches() -> Response:
        """The batches of the caller's key."""
        jobs = checked(stores).jobs
        own = [job for job in reversed(jobs.jobs(auth.owner())) if job.kind == "openai"]
        data, has_more = openai_files.page([_Named(_PREFIX + job.id, job) for job in own], 20, 100)
        found = list(views(jobs, [one.job for one in data], lambda job: _view(jobs, job)))
        return body.answer(Batches("list", found, *openai_files.ends(found), has_more))

    @routes.get("/v1/batches/<id>", **_DECLARED)
    @openapi.describe({200: Batch}, errors=(UnknownJob, *OF_THE_STORE))
    def show_batch(id: str) -> Response:
        """A batch's state."""
        jobs = checked(stores).jobs
        return body.answer(_view(jobs, _batch(jobs, id)))

    @routes.post("/v1/batches/<id>/cancel", **_DECLARED)
    @openapi.describe({200: Batch}, errors=(UnknownJob, JobEnded, *OF_THE_STORE))
    def cancel_batch(id: str) -> Response:
        """End a batch after its lines under way; the finished ones are in its output file."""
        jobs = checked(stores).jobs
        job = _batch(jobs, id)
        jobs.cancel(job)
        return body.answer(_view(jobs, job))

    return routes


def _role(model_client: ModelClient) -> tuple[tuple[str, ...] | None, str | None]:
    """The prompts and the task that the end of the model's name asks for."""
    role = model_client.role
    return (None, None) if role is None else (role.prompt_names, role.task)


class _Named(msgspec.Struct):
    id: str
    job: JobSpec


def _created(there: Stores, asked: BatchRequest, reader: BatchReader, settings: Settings) -> JobSpec | None:
    """The job of a file's lines; None if the file has faults."""
    with (
        there.files.open(openai_files.input_file(there, asked.input_file_id)) as file,
        there.jobs.draft() as draft,
    ):
        for number, line in enumerate(reader.read(lines(file.read, settings.server.max_message_bytes)), 1):
            check_count(number, settings.jobs.max_texts)
            if not reader.faults:
                draft.add(line)
        if not reader.faults and not draft.lines:
            reader.faults.append(Fault("empty_file", None, "the file has no lines"))
        if reader.faults:
            return None
        assert reader.model is not None  # that of the first line
        description = known_model(reader.model)
        job = there.jobs.publish(
            draft, auth.owner(), "openai", Options(served_name(reader.model), *_role(reader.model)),
            row_bytes=row_bytes(None, description), by_line=True, about=_about(asked, reader),
        )  # fmt: skip
        usage.of_texts(draft.inputs)
        return job


def _refused(there: Stores, asked: BatchRequest, reader: BatchReader) -> JobSpec:
    """The batch of a file with faults, which has failed and computes nothing."""
    about = {**_about(asked, reader), "faults": msgspec.to_builtins(reader.faults)}
    failure = Failure("InvalidInput", "the file has faults", InvalidInput.http_status)
    with there.jobs.draft() as draft:
        return there.jobs.publish(draft, auth.owner(), "openai", Options(), about=about, failure=failure)


def _about(asked: BatchRequest, reader: BatchReader) -> dict[str, Any]:
    return {
        "input_file_id": asked.input_file_id,
        "completion_window": asked.completion_window,
        "metadata": asked.metadata,
        "model": reader.model_name,
    }


def _batch(jobs: JobStore, id: str) -> JobSpec:
    """The caller's batch. Raises UnknownJob."""
    job = jobs.job(id.removeprefix(_PREFIX) if id.startswith(_PREFIX) else "", auth.owner())
    if job.kind != "openai":
        raise UnknownJob(f"there is no batch {id[:100]!r} here: it is a job of /api/v1/jobs")
    return job


def _view(jobs: JobStore, job: JobSpec) -> Batch:
    now = jobs.progress(job)
    failed = failed_lines(jobs, job)
    ids = result_ids(jobs, job, now.state, failed)
    faults = msgspec.convert(job.about.get("faults", []), list[Fault])
    if now.failure is not None and not faults:
        faults = [Fault(errors.openai_code(now.failure.type), now.failure.line, now.failure.message)]
    ended = {state: int(now.ended) if now.ended and now.state is state else None for state in State}
    return Batch(
        id=_PREFIX + job.id,
        object="batch",
        endpoint=ENDPOINT,
        model=job.about["model"],
        errors=BatchFaults("list", faults) if faults else None,
        input_file_id=job.about["input_file_id"],
        completion_window=job.about["completion_window"],
        status=_STATUS[now.state],
        output_file_id=ids["output"],
        error_file_id=ids["errors"],
        created_at=int(job.created),
        in_progress_at=None if now.began is None else int(now.began),
        completed_at=ended[State.DONE],
        failed_at=ended[State.FAILED],
        cancelling_at=ended[State.CANCELLED],
        cancelled_at=ended[State.CANCELLED],
        request_counts=RequestCounts(job.lines, now.done - failed, failed),
        metadata=job.about["metadata"],
    )
