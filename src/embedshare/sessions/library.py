"""The documents of sessions: uploaded, listed, deleted, and what a crash cut off.

The order of a document's steps makes it whole or absent after a crash at any moment: its row says `loading`
before its first point is stored, `publishing` once all are, and `ready` once the store shows them. At the
next start what was loading is dropped, and what was publishing is published.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from loguru import logger

from embedshare.calls import EmbedResult
from embedshare.errors import EmbedshareError, InvalidInput, TooLarge, UnknownSession, UploadIncomplete
from embedshare.sessions import metadata, quotas
from embedshare.sessions.embedding import Models
from embedshare.sessions.ingest import Surroundings, Upload, UploadEnd
from embedshare.sessions.manager import SWEEP_S, Session, SessionManager
from embedshare.sessions.parts import Parts, VectorStore
from embedshare.sessions.records import (
    LOADING,
    PUBLISHING,
    READY,
    REMOVING,
    DocumentRecord,
    Usage,
    document_id,
)
from embedshare.settings import Settings

#: The most ids of chunks in one answer.
MOST_IDS = 100_000
#: The longest name of a file.
MOST_NAME = 1024


class File(NamedTuple):
    """A file as its uploader describes it; `size` in bytes, None if it is not told."""

    name: str
    content_type: str
    size: int | None
    metadata: Mapping[str, str]


class Progress(NamedTuple):
    """A document, or an upload of one: `state` is ingesting, ready or failed."""

    record: DocumentRecord
    state: str
    stored: int
    size: int | None
    """Bytes of the whole file, None while they are not known."""

    error: str | None = None


class Library:
    """What is done with the documents of sessions; thread-safe. `threads` computes the calls of models."""

    def __init__(
        self, sessions: SessionManager, models: Models, parts: Parts, settings: Settings, threads: Executor
    ) -> None:
        self._sessions = sessions
        self._records = sessions.records
        self._uploads = sessions.uploads
        self._models = models
        self._parts = parts
        self._settings = settings
        self._threads = threads
        self._unfinished: deque[tuple[Session, DocumentRecord]] = deque()
        """Versions whose last step failed."""

    def recover(self) -> None:
        """End what the last process left unfinished. Raises DatabaseUnavailable and the store's errors."""
        self._sessions.each(self._recover_session)
        self._sessions.sweep()

    def follow(self, stop: threading.Event) -> None:
        """Destroy sessions whose time is over, end what failed, and store what changed, until `stop`."""
        pause_s = min(SWEEP_S, self._settings.sessions.ttl_s / 4 or SWEEP_S)
        while not stop.wait(pause_s):
            try:
                self.sweep()
            except Exception as error:
                logger.warning("Sweeping sessions again later ({})", error)

    def sweep(self) -> None:
        """One look of `follow`. Raises DatabaseUnavailable and the store's errors."""
        while self._unfinished:
            session, record = self._unfinished[0]
            if not session.is_ending:
                with session.lock:
                    self._settle(session, record)
            self._unfinished.popleft()
        self._sessions.sweep()

    def begin(self, session: Session, file: File) -> Upload:
        """An upload of a file into a session.

        Raises InvalidInput, QuotaExceeded, Overloaded, ModelMismatch, and the errors of reaching the model.
        """
        if not file.name or len(file.name) > MOST_NAME or not file.name.isprintable():
            raise InvalidInput(f"a file needs a name of 1 to {MOST_NAME:,} printable characters")
        config, record = session.config, session.record
        self._check_declared(file.size)
        self._sessions.tokens.check(record.owner)
        model = self._models.checked(config.model, config.identity)
        self._models.frame(model, config.model)
        document = DocumentRecord(
            record.uid, document_id(file.name), file.name, file.content_type[:255],
            metadata.typed(file.metadata, config.schema),
        )  # fmt: skip
        held = self._records.usage(record.uid, besides=document.document)
        uses = Surroundings(
            self._parts, self._models, self._store(session), self._threads,
            partial(self._count, record.owner), held, self._settings.sessions,
        )  # fmt: skip
        self._uploads.await_cancelled(record.uid, document.document)
        upload = Upload(document, config, uses, file.size)
        with session.lock:
            self._check_there(session, config.chunk_size)
            self._uploads.begin(upload)
        try:
            self._records.add_document(document)  # before its first point
        except BaseException:
            self._uploads.ended(upload, None)
            raise
        return upload

    def commit(self, session: Session, upload: Upload, end: UploadEnd | None) -> DocumentRecord:
        """The document, which searches find from now on.

        Raises UploadIncomplete and what Upload.feed raises; `abort` has to follow then.
        """
        record = upload.finish(end)
        with session.lock:
            upload.check()
            held = self._records.usage(record.session, besides=record.document)
            quotas.check(held, Usage(1, record.chunks, record.size), self._settings.sessions)
            self._records.loaded(record)
            upload.is_decided = True
            self._publish(session, replace(record, state=PUBLISHING))
            upload.close()
            self._uploads.ended(upload, None)
        logger.info("Stored a document of session {} ({:,} chunks)", record.session, record.chunks)
        return record

    def abort(self, session: Session, upload: Upload, error: EmbedshareError) -> None:
        """Leave nothing of an upload that failed with `error`, unless it is decided already."""
        upload.cancel(error)
        upload.close()
        record = upload.record
        with session.lock:
            if upload.ended.is_set():
                return  # it was stored before its caller left
            if upload.is_decided:
                record = replace(record, state=PUBLISHING)
            try:
                self._settle(session, record)
            except Exception as failure:
                self._unfinished.append((session, record))
                logger.error("Could not end an upload of session {} yet ({})", record.session, failure)
            self._uploads.ended(upload, error)
        logger.info("Dropped an upload of session {} ({})", record.session, type(error).__name__)

    def chunk_ids(self, record: DocumentRecord) -> list[str]:
        """The ids of a document's chunks, of the first MOST_IDS."""
        count = min(record.chunks, MOST_IDS)
        return [str(self._parts.point_id(record.session, record.document, one)) for one in range(count)]

    def documents(self, session: Session) -> list[Progress]:
        """The session's documents, and uploads under way or failed lately."""
        uid = session.record.uid
        found = {one.document: _ready(one) for one in self._records.documents(uid, READY)}
        for failed in self._uploads.failed(uid):
            found.setdefault(
                failed.record.document, _failed(failed.record, failed.declared_size, failed.error)
            )
        for upload in self._uploads.of(uid):
            found[upload.record.document] = _running(upload)
        return list(found.values())

    def document(self, session: Session, document: str) -> Progress:
        """A document, or the upload of one. Raises UnknownSession."""
        uid = session.record.uid
        for upload in self._uploads.of(uid):
            if upload.record.document == document:
                return _running(upload)
        for failed in self._uploads.failed(uid):
            if failed.record.document == document:
                return _failed(failed.record, failed.declared_size, failed.error)
        record = self._records.document(uid, document)
        if record is None:
            raise UnknownSession(f"the session has no document {document[:64]!r}")
        return _ready(record)

    def delete(self, session: Session, document: str) -> None:
        """Delete a document. Raises UnknownSession."""
        with session.lock:
            record = self._records.document(session.record.uid, document)
            if record is None:
                raise UnknownSession(f"the session has no document {document[:64]!r}")
            self._records.begin_removal(record.version)
            try:
                self._settle(session, replace(record, state=REMOVING))
            except Exception:
                self._unfinished.append((session, replace(record, state=REMOVING)))
                raise

    def embeddings(self, session: Session, texts: list[str], limit: float) -> EmbedResult:
        """Vectors of texts as of documents. Raises InvalidInput, TooLarge, QuotaExceeded, ModelMismatch."""
        if not texts:
            raise InvalidInput("texts is empty")
        most = self._settings.server.max_texts
        if len(texts) > most:
            raise TooLarge(f"the call has {len(texts):,} texts; EMBEDDING_MAX_TEXTS allows {most:,}")
        config, owner = session.config, session.record.owner
        self._sessions.tokens.check(owner)
        result = self._models.of_texts(config.model, config.identity, texts, limit)
        self._count(owner, result.tokens)
        return result

    def _count(self, owner: str, tokens: int) -> None:
        self._sessions.tokens.check(owner)
        self._sessions.tokens.add(owner, tokens)

    def _store(self, session: Session) -> VectorStore:
        return self._sessions.collections.of(session.record)

    def _publish(self, session: Session, record: DocumentRecord) -> None:
        self._store(session).publish(record.session, record.document, record.version, record.chunks)
        self._records.published(record)
        session.usage = self._records.usage(record.session)

    def _settle(self, session: Session, record: DocumentRecord) -> None:
        """The last step of a version, by its state."""
        if record.state == PUBLISHING:
            try:
                self._publish(session, record)
                return
            except UploadIncomplete:  # the crash took some of its chunks along; its uploader got no answer
                logger.warning("Dropping a document of session {} (not all of it is stored)", record.session)
        self._store(session).drop_document(record.session, record.document, record.version)
        self._records.remove_document(record.version)
        session.usage = self._records.usage(record.session)

    def _recover_session(self, session: Session) -> None:
        unfinished = self._records.documents(session.record.uid, LOADING, PUBLISHING, REMOVING)
        if session.is_ending:
            return  # all of it goes
        for record in unfinished:
            self._settle(session, record)
        if unfinished:
            count = len(unfinished)
            logger.info("Ended what was cut off in session {} ({} documents)", session.record.uid, count)

    def _check_declared(self, size: int | None) -> None:
        most = self._settings.sessions.max_file_bytes
        if size is not None and size > most:
            raise TooLarge(f"the file has {size:,} bytes; EMBEDDING_SESSION_MAX_FILE_BYTES allows {most:,}")

    @staticmethod
    def _check_there(session: Session, chunk_size: int | None = None) -> None:
        if session.is_ending:
            raise UnknownSession("the session was destroyed meanwhile")
        if chunk_size is not None and chunk_size != session.config.chunk_size:
            raise InvalidInput("the session's chunking changed meanwhile: send the file again")


def _ready(record: DocumentRecord) -> Progress:
    return Progress(record, "ready", record.chunks, record.size)


def _running(upload: Upload) -> Progress:
    return Progress(upload.record, "ingesting", upload.stored, upload.declared_size)


def _failed(record: DocumentRecord, size: int | None, error: EmbedshareError) -> Progress:
    return Progress(record, "failed", 0, size, error.message)
