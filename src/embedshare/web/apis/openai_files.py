"""OpenAI's files: uploaded input of batches, and the batches' results as files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from flask import Blueprint, Response, request
from msgspec import Meta
from werkzeug.exceptions import UnsupportedMediaType

from embedshare.errors import (
    InvalidInput,
    JobsDisabled,
    JobsNotKept,
    NoRoomForJobs,
    TooLarge,
    TooManyJobs,
    UnknownFile,
    UnknownJob,
)
from embedshare.jobs.files import FileStore, StoredFile, unknown
from embedshare.jobs.progress import State
from embedshare.jobs.spec import JobSpec
from embedshare.jobs.store import JobStore
from embedshare.web import body, openapi
from embedshare.web.apis import batch_lines
from embedshare.web.errors import OpenAIError
from embedshare.web.guards import auth
from embedshare.web.routes import Tag

Result = Literal["output", "errors"]
RESULTS: tuple[Result, ...] = ("output", "errors")
#: An uploaded file's id, or that of a batch's result.
_FILE_ID = re.compile(r"file-([0-9a-f]{32})(?:-(output|errors))?")
_MULTIPART = "multipart/form-data"
_READ_BYTES = 1 << 20
_DECLARED: dict[str, Any] = {"scopes": ("embed",), "form": OpenAIError, "tag": Tag.OPENAI}
OF_THE_STORE = (JobsDisabled, JobsNotKept)


class FileUpload(msgspec.Struct):
    """A file of JSON lines, each a request of `POST /v1/embeddings`."""

    file: Annotated[str, Meta(extra_json_schema={"format": "binary"})]
    purpose: Literal["batch"]


class OpenAIFile(msgspec.Struct):
    """A file. `bytes`: of a batch's result those that it takes on the disk, where vectors are binary."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]


class OpenAIFiles(msgspec.Struct):
    """The caller's files, newest first."""

    object: Literal["list"]
    data: list[OpenAIFile]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(msgspec.Struct):
    """The id of a file that is deleted."""

    id: str
    object: Literal["file"]
    deleted: bool


class Stores(NamedTuple):
    """The jobs and the uploaded files of a machine's workers; `kept_s`: seconds for which they are kept."""

    jobs: JobStore
    files: FileStore
    kept_s: float


def blueprint(stores: Stores | None) -> Blueprint:
    """`/v1/files` and its subpaths; `stores` is None in a worker that takes no jobs."""
    routes = Blueprint("openai_files", __name__)

    @routes.post("/v1/files", large_limit="EMBEDDING_MAX_JOB_BYTES", **_DECLARED)
    @openapi.describe(
        {200: OpenAIFile},
        errors=(InvalidInput, TooLarge, UnsupportedMediaType, TooManyJobs, NoRoomForJobs, *OF_THE_STORE),
        body=FileUpload,
        media_types=(_MULTIPART,),
    )
    def upload_file() -> Response:
        """Upload the input of a batch."""
        there = checked(stores)
        if request.mimetype != _MULTIPART:
            raise UnsupportedMediaType(f"send the fields `file` and `purpose` as {_MULTIPART}")
        file, purpose = request.files.get("file"), request.form.get("purpose")
        if file is None or purpose != "batch":
            raise InvalidInput("the form must have a `file`, and `purpose` must be `batch`")
        name, size = file.filename or "file.jsonl", request.content_length or 0
        stored = there.files.add(file.stream, name, auth.owner(), size)
        return body.answer(_uploaded(stored, there.kept_s))

    @routes.get("/v1/files", **_DECLARED)
    @openapi.describe(
        {200: OpenAIFiles},
        errors=(InvalidInput, *OF_THE_STORE),
        query={"after": str, "limit": Annotated[int, Meta(ge=1, le=10_000)], "purpose": str},
    )
    def list_files() -> Response:
        """The uploaded files of the caller's key, and the results of its batches."""
        there, purpose = checked(stores), request.args.get("purpose")
        found = [_uploaded(file, there.kept_s) for file in there.files.files(auth.owner())]
        for job in there.jobs.jobs(auth.owner()):
            found += _results(there, job)
        shown = [one for one in found if purpose in (None, one.purpose)]
        data, has_more = page(sorted(shown, key=lambda one: -one.created_at), 10_000, 10_000)
        return body.answer(OpenAIFiles("list", data, *ends(data), has_more))

    @routes.get("/v1/files/<id>", **_DECLARED)
    @openapi.describe({200: OpenAIFile}, errors=(UnknownFile, *OF_THE_STORE))
    def show_file(id: str) -> Response:
        """A file's description."""
        there = checked(stores)
        name, result = _parsed(id)
        if result is None:
            return body.answer(_uploaded(there.files.file(name, auth.owner()), there.kept_s))
        return body.answer(_result(there, name, result)[1])

    @routes.get("/v1/files/<id>/content", **_DECLARED)
    @openapi.describe({200: {"application/jsonl": str}}, errors=(UnknownFile, *OF_THE_STORE))
    def file_content(id: str) -> Response:
        """A file's content."""
        there = checked(stores)
        name, result = _parsed(id)
        if result is None:
            content = _pieces(there, there.files.file(name, auth.owner()))
        else:
            content = _lines(there.jobs, _result(there, name, result)[0], result)
        return Response(content, content_type="application/jsonl")

    @routes.delete("/v1/files/<id>", **_DECLARED)
    @openapi.describe({200: FileDeleted}, errors=(UnknownFile, *OF_THE_STORE))
    def delete_file(id: str) -> Response:
        """Delete a file. Batches that were created from it keep their input."""
        there = checked(stores)
        name, result = _parsed(id)
        if result is None:
            there.files.remove(there.files.file(name, auth.owner()))
        else:
            there.jobs.mark(_result(there, name, result)[0], f"no-{result}")
        return body.answer(FileDeleted(id, "file", True))

    return routes


def checked(stores: Stores | None) -> Stores:
    """The stores. Raises JobsDisabled."""
    if stores is None:
        raise JobsDisabled("this worker takes no jobs: EMBEDDING_JOBS or USE_IPC_EMBEDDING is false")
    return stores


def input_file(stores: Stores, id: str) -> StoredFile:
    """The caller's uploaded file. Raises UnknownFile."""
    name, result = _parsed(id)
    if result is not None:
        raise unknown(id)
    return stores.files.file(name, auth.owner())


def result_ids(jobs: JobStore, job: JobSpec, state: State, failed: int) -> dict[Result, str | None]:
    """The ids of a batch's results; None for one that is empty, deleted or still to come."""
    done = jobs.progress(job).done if state in (State.DONE, State.CANCELLED) else 0
    counts: dict[Result, int] = {"output": done - failed, "errors": failed if done else 0}
    return {
        result: f"file-{job.id}-{result}" if count and not jobs.is_marked(job, f"no-{result}") else None
        for result, count in counts.items()
    }


def failed_lines(jobs: JobStore, job: JobSpec) -> int:
    """The number of a batch's lines that ended by an error so far."""
    return sum(jobs.failed_lines(job, number) for number in range(jobs.parts_done(job)))


Item = Any


def page(items: Sequence[Item], default: int, most: int) -> tuple[list[Item], bool]:
    """The items that the parameters `after` and `limit` ask for, and whether there are more.

    Raises InvalidInput.
    """
    after, limit = request.args.get("after"), request.args.get("limit", str(default))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:6]) <= most):
        raise InvalidInput(f"`limit` must be a whole number from 1 to {most:,}")
    places = [number for number, item in enumerate(items) if item.id == after]
    begin = places[0] + 1 if places else 0
    if after is not None and not places:
        raise InvalidInput(f"`after` is {after[:100]!r}, which is no id of this list")
    return list(items[begin : begin + int(limit)]), begin + int(limit) < len(items)


def ends(items: Sequence[Item]) -> tuple[str | None, str | None]:
    """The ids of the first and the last of the items."""
    return (items[0].id, items[-1].id) if items else (None, None)


def _parsed(id: str) -> tuple[str, Result | None]:
    """The id of the file or the job, and which of the job's results. Raises UnknownFile."""
    found = _FILE_ID.fullmatch(id)
    if found is None:
        raise unknown(id)
    result: Any = found[2]
    return found[1], result


def _uploaded(file: StoredFile, kept_s: float) -> OpenAIFile:
    return OpenAIFile(
        f"file-{file.id}", "file", file.held_bytes, int(file.created), int(file.created + kept_s),
        file.name, "batch", "processed",
    )  # fmt: skip


def _results(there: Stores, job: JobSpec) -> list[OpenAIFile]:
    """The results of a batch that has ended."""
    if job.kind != "openai":
        return []
    try:
        now = there.jobs.progress(job)
        if not now.state.is_final:
            return []
        ids = result_ids(there.jobs, job, now.state, failed_lines(there.jobs, job))
        size = there.jobs.result_bytes(job)
    except UnknownJob:
        return []  # deleted meanwhile
    ended = now.ended or job.created
    return [
        OpenAIFile(
            id, "file", size, int(ended), int(ended + there.kept_s), f"{result}.jsonl",
            "batch_output", "processed",
        )
        for result, id in ids.items()
        if id is not None
    ]  # fmt: skip


def _result(there: Stores, name: str, result: Result) -> tuple[JobSpec, OpenAIFile]:
    """A batch, and its result as a file. Raises UnknownFile."""
    id = f"file-{name}-{result}"
    try:
        job = there.jobs.job(name, auth.owner())
    except UnknownJob:
        raise unknown(id) from None
    for found in _results(there, job):
        if found.id == id:
            return job, found
    raise unknown(id)


def _pieces(there: Stores, file: StoredFile) -> Iterator[bytes]:
    opened = there.files.open(file)  # before the answer's head: the file may be gone

    def read() -> Iterator[bytes]:
        with opened:
            while piece := opened.read(_READ_BYTES):
                yield piece

    return read()


def _lines(jobs: JobStore, job: JobSpec, result: Result) -> Iterator[bytes]:
    """The lines of a batch's result, part by part."""
    for number in range(jobs.parts_done(job)):
        part, asked, found = jobs.part(job, number), jobs.lines(job, number), []
        for place, (line, one) in enumerate(zip(part.lines, asked, strict=True), job.lines_before(number)):
            if (line.failure is None) == (result == "output"):
                found.append(batch_lines.written(job.id, place, one, line, part.model_name))
        yield b"\n".join([*found, b""]) if found else b""
