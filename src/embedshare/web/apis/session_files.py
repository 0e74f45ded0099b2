"""Documents of sessions over HTTP: sent as files, followed while they are read, listed and deleted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
from flask import Blueprint, Response, request
from msgspec import Meta
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import UnsupportedMediaType

from embedshare.errors import (
    DocumentUnreadable,
    EmbedshareError,
    InvalidInput,
    Overloaded,
    QuotaExceeded,
    UnknownModel,
    UnknownSession,
    UploadIncomplete,
)
from embedshare.telemetry import usage
from embedshare.web import body, errors, openapi
from embedshare.web.apis.sessions import DECLARED, OF_SESSIONS, SENT
from embedshare.web.errors import JSON, Error
from embedshare.web.session_client import CallerSessions, Document, ProcessedFile

MULTIPART, EVENTS = "multipart/form-data", "text/event-stream"
MAX_FILE_BYTES = "EMBEDDING_SESSION_MAX_FILE_BYTES"
#: Errors of a file that is sent.
UPLOADING = (
    *SENT, UnknownSession, UnknownModel, QuotaExceeded, DocumentUnreadable, UploadIncomplete, *OF_SESSIONS,
    *errors.OF_THE_MODEL,
)  # fmt: skip
#: Bytes that are passed on at once.
_PIECE_BYTES = 1 << 19
#: Seconds between two looks at a document that is followed.
LOOK_EVERY_S = 0.25
#: Seconds without news until a stream has a sign of life. A reader that has left shows only when it is
#: written to, and until then takes a thread.
ALIVE_S = 2.0
#: Seconds for which a document is followed; then the stream ends, and its reader connects again.
FOLLOWED_S = 600.0
#: Seconds until a retry, when all places are taken.
_RETRY_AFTER_S = 2.0
_Binary = Annotated[str, Meta(extra_json_schema={"format": "binary"})]


class FilesUpload(msgspec.Struct):
    """Files, each a document, and as JSON the metadata of all of them. A name may be repeated in the form."""

    file: list[_Binary]
    metadata: str | None = None


class SentFile(msgspec.Struct):
    """A file that was sent: the document that it became, or the error for which nothing of it was stored."""

    filename: str
    document: ProcessedFile | None
    error: Error | None


class SentFiles(msgspec.Struct):
    """The files in the order in which they were sent."""

    files: list[SentFile]


class DocumentList(msgspec.Struct):
    """The documents of a session, oldest first, those too that are being read."""

    documents: list[Document]


class Places:
    """Bounds the requests that hold one of a worker's threads for long. `count`: at once."""

    def __init__(self, count: int, what: str) -> None:
        self._free = threading.BoundedSemaphore(count)
        self._full = f"this worker {what} {count} times already, its limit"

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def take(self) -> None:
        """Raises Overloaded."""
        if not self._free.acquire(blocking=False):
            raise Overloaded(self._full, retry_after_s=_RETRY_AFTER_S)

    def give_back(self) -> None:
        self._free.release()


def blueprint(sessions: CallerSessions, uploads: Places, followers: Places) -> Blueprint:
    """`/sessions/<session>/files` and its subpaths."""
    routes = Blueprint("session_files", __name__)

    @routes.post("/sessions/<session>/files", large_limit=MAX_FILE_BYTES, **DECLARED)
    @openapi.describe(
        {200: SentFiles, 207: SentFiles}, errors=UPLOADING, body=FilesUpload, media_types=(MULTIPART,)
    )
    def add_files(session: str) -> tuple[Response, int]:
        """Add files to a session: each is read, cut into chunks, embedded and stored.

        The answer comes when all are stored. A file is stored whole or not at all; one of the same name
        replaces the earlier one. A single file's error is the answer's. Of several, those that can be read
        are stored, and the status is 207 if one cannot.
        """
        check_form()
        sessions.admitted(session)
        sent, metadata = _files(), form_metadata()
        with uploads:
            if len(sent) == 1:
                stored = [SentFile(_name(sent[0]), process(sessions, session, sent[0], metadata), None)]
            else:
                stored = [_tried(sessions, session, file, metadata) for file in sent]
        failed = any(one.error for one in stored)
        return body.answer(SentFiles(stored)), 207 if failed else 200

    @routes.get("/sessions/<session>/files", **DECLARED)
    @openapi.describe({200: DocumentList}, errors=(UnknownSession, *OF_SESSIONS))
    def list_documents(session: str) -> Response:
        """The documents of a session, and the progress of those that are being read."""
        found = sessions.client.documents(session)
        return body.answer(DocumentList(msgspec.convert(found, list[Document])))

    @routes.get("/sessions/<session>/files/<document>", **DECLARED)
    @openapi.describe({200: {JSON: Document, EVENTS: str}}, errors=(UnknownSession, Overloaded, *OF_SESSIONS))
    def show_document(session: str, document: str) -> Response:
        """A document's progress; with `Accept: text/event-stream` each change of it until it has ended."""
        client = sessions.client

        def read() -> Document:
            return msgspec.convert(client.document(session, document), Document)

        first = read()
        if request.accept_mimetypes.best_match([JSON, EVENTS], JSON) == JSON:
            response = body.answer(first)
        else:
            response = _stream(first, read, followers)
        response.vary.add("Accept")
        return response

    @routes.delete("/sessions/<session>/files/<document>", **DECLARED)
    @openapi.describe({204: {}}, errors=(UnknownSession, *OF_SESSIONS))
    def delete_document(session: str, document: str) -> tuple[str, int]:
        """Delete a document and its vectors."""
        sessions.client.delete_document(session, document)
        return "", 204

    return routes


def check_form() -> None:
    """Raise UnsupportedMediaType for a body that is not a form with files."""
    if request.mimetype != MULTIPART:
        raise UnsupportedMediaType(f"send the file in a field `file`, as {MULTIPART}")


def form_metadata() -> dict[str, Any]:
    """The JSON object in the form's field `metadata`. Raises InvalidInput."""
    given = request.form.get("metadata") or "{}"
    try:
        return msgspec.json.decode(given, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidInput(f"`metadata` must be a JSON object: {body.reason(error, b'')}") from None


def process(
    sessions: CallerSessions, session: str, file: FileStorage, metadata: dict[str, Any]
) -> ProcessedFile:
    """Have a file's pieces read, embedded and stored. Raises the errors of UPLOADING."""
    pieces = iter(lambda: file.stream.read(_PIECE_BYTES), b"")
    done = sessions.client.process_file(session, _name(file), file.content_type, pieces, metadata)
    processed = msgspec.convert(done, ProcessedFile)
    usage.of_texts(processed.chunks_processed)
    return processed


def _tried(sessions: CallerSessions, session: str, file: FileStorage, metadata: dict[str, Any]) -> SentFile:
    try:
        return SentFile(_name(file), process(sessions, session, file, metadata), None)
    except EmbedshareError as error:
        return SentFile(_name(file), None, Error(error.message, type(error).__name__))


def _files() -> list[FileStorage]:
    """The form's files, whatever their fields' names. Raises InvalidInput."""
    found = [file for _, file in request.files.items(multi=True) if file.filename]
    if not found:
        raise InvalidInput("the form has no file: send one or more in the field `file`, with a file name")
    return found


def _name(file: FileStorage) -> str:
    """The file's own name, without the folders that some clients send with it."""
    return (file.filename or "").replace("\\", "/").rpartition("/")[2] or "file"


def _stream(first: Document, read: Callable[[], Document], followers: Places) -> Response:
    followers.take()
    response = Response(events(first, read), content_type=EVENTS)
    response.call_on_close(followers.give_back)  # of an answer that is never sent too
    response.headers["X-Accel-Buffering"] = "no"  # nginx would keep the events back
    return response


def events(
    first: Document, read: Callable[[], Document], look_every_s: float = LOOK_EVERY_S
) -> Iterator[bytes]:
    """Server-sent events: the document at each change, then `end` once it is stored or has failed.

    An error of reading it is the last event, `error`.
    """
    ends, told, shown = time.monotonic() + FOLLOWED_S, time.monotonic(), first
    yield _event("progress", shown)
    while shown.state == "ingesting" and time.monotonic() < ends:
        time.sleep(look_every_s)
        try:
            now = read()
        except EmbedshareError as error:
            yield _event("error", Error(error.message, type(error).__name__))
            return
        if now != shown:
            yield _event("progress", now)
            shown, told = now, time.monotonic()
        elif time.monotonic() - told > ALIVE_S:
            yield b": still reading\n\n"
            told = time.monotonic()
    if shown.state != "ingesting":
        yield _event("end", shown)


def _event(name: str, value: msgspec.Struct) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(value))
