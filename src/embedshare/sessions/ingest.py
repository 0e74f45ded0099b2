"""One document on its way into a session: read, cut, embedded and stored while the rest still comes.

Nothing is visible before `finish`, and nothing is left after `abort`.
"""

from __future__ import annotations

import contextvars
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from embedshare.errors import DocumentUnreadable, EmbedshareError, TooLarge, UploadIncomplete
from embedshare.sessions import quotas
from embedshare.sessions.embedding import Encoded, Models
from embedshare.sessions.parts import Chunk, Chunker, Limits, Parts, Piece, Reader, VectorStore
from embedshare.sessions.records import Config, DocumentRecord, Usage
from embedshare.sessions.store.weights import Weights
from embedshare.settings.sessions import SessionSettings

#: The first bytes of a file, by which its kind is found out.
HEAD_BYTES = 4096
#: Chunks of one call of the model, and their tokens: enough for batches of equally long texts.
BATCH_CHUNKS, BATCH_TOKENS = 128, 1 << 14
#: Calls of one upload that are under way at once: while one is computed, the next is on its way.
CALLS_AT_ONCE = 2
#: Seconds and memory for reading one document, and its characters.
READING_S, READING_BYTES, MOST_CHARS = 300.0, 1 << 30, 1 << 31


class UploadEnd(NamedTuple):
    """The last message of an upload: its messages with a chunk, their bytes, and the file's SHA-256."""

    chunks: int
    size: int
    sha256: bytes


class Surroundings(NamedTuple):
    """What an upload works with."""

    parts: Parts
    models: Models
    store: VectorStore
    threads: Executor
    """Computes the calls of the model."""

    tell: Callable[[int], None]
    """Told how many tokens were read. Raises QuotaExceeded."""

    held: Usage
    """What the session's other documents take."""

    limits: SessionSettings


class Upload:
    """A version of a document; thread-safe."""

    def __init__(
        self, record: DocumentRecord, config: Config, uses: Surroundings, declared_size: int | None
    ) -> None:
        """`declared_size`: the bytes of the file, as the uploader said. Raises QuotaExceeded."""
        self.record = record
        self.declared_size = declared_size
        self.stored = 0
        """Chunks that are stored so far."""
        self.is_decided = False
        """Whether it will be visible, now or after the next start: it cannot be aborted then."""
        self.ended = threading.Event()
        """Set once nothing of it is under way any more."""
        self._config = config
        self._uses = uses
        self._head: list[bytes] = []
        self._reader: Reader | None = None
        frame = uses.models.frame_of(config.model, config.identity)
        self._chunker: Chunker = uses.parts.chunker(
            partial(uses.models.tokens, config.model, config.identity),
            config.chunk_size, config.chunk_overlap, frame.before, frame.after, frame.by_ids,
        )  # fmt: skip
        self._turn = threading.Lock()
        self._hash = hashlib.sha256()
        self._messages = 0
        self._waiting: list[Chunk] = []
        self._waiting_tokens = 0
        self._calls: deque[Future[Encoded]] = deque()
        self._numbered = 0
        self._cancelled: EmbedshareError | None = None
        self.on_cancel: Callable[[], None] = lambda: None
        """Called by `cancel`, to wake what waits for the next bytes."""
        self._check(Usage(1, 0, declared_size or 0))

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the file.

        Raises TooLarge, QuotaExceeded, DocumentUnreadable, and the errors of the model and the store.
        """
        with self._turn:
            self.check()
            self._messages += 1
            self._hash.update(data)
            self.record = replace(self.record, size=self.record.size + len(data))
            self._check_size()
            if self._reader is not None:
                self._take(self._reader.feed(data))
                return
            self._head.append(data)
            if self.record.size >= HEAD_BYTES:
                self._begin()

    def finish(self, end: UploadEnd | None) -> DocumentRecord:
        """The document with its figures, once all of its chunks are stored.

        `end` is None for an uploader that says no more than the file's size at the beginning. Raises
        UploadIncomplete and what `feed` raises.
        """
        with self._turn:
            self.check()
            self._check_complete(end)
            reader = self._reader or self._begin()
            self._take(reader.end())
            self._batch(self._chunker.end())
            self._send()
            while self._calls:
                self._await_oldest()
            self.check()
            if not self._numbered:
                raise DocumentUnreadable("the file holds no text", reason="empty")
            return self.record

    @property
    def is_cancelled(self) -> bool:
        """Whether it fails at its next step, if it has not yet."""
        return self._cancelled is not None

    def cancel(self, reason: EmbedshareError) -> None:
        """Have the upload fail with `reason` at its next step."""
        self._cancelled = self._cancelled or reason
        self.on_cancel()

    def close(self) -> None:
        """Wait for what is under way after `cancel`; nothing is stored any more then."""
        with self._turn:
            for call in self._calls:
                call.cancel()
            for call in self._calls:
                if not call.cancelled():
                    call.exception()
            if self._reader is not None:
                self._reader.close()

    def _begin(self) -> Reader:
        head = b"".join(self._head)
        self._head = []
        parts, settings = self._uses.parts, self._uses.limits
        kind = parts.kind_of(self.record.filename, self.record.content_type or None, head)
        limits = Limits(settings.max_file_bytes, MOST_CHARS, READING_S, READING_BYTES)
        self._reader = parts.reader(kind, limits)
        self._take(self._reader.feed(head))
        return self._reader

    def _take(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self._batch(self._chunker.push(piece))

    def _batch(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            self.check()
            self._waiting.append(chunk)
            self._waiting_tokens += len(chunk.ids or chunk.text)
            if len(self._waiting) >= BATCH_CHUNKS or self._waiting_tokens >= BATCH_TOKENS:
                self._send()

    def _send(self) -> None:
        """Have the waiting chunks embedded and stored."""
        if not self._waiting:
            return
        chunks, self._waiting, self._waiting_tokens = self._waiting, [], 0
        while len(self._calls) >= CALLS_AT_ONCE:
            self._await_oldest()
        first, self._numbered = self._numbered, self._numbered + len(chunks)
        self._check(Usage(1, self._numbered, self.record.size))
        context = contextvars.copy_context()  # the request's id
        self._calls.append(self._uses.threads.submit(context.run, self._store, first, chunks))

    def _await_oldest(self) -> None:
        result = self._calls[0].result()
        self._calls.popleft()
        self.stored += len(result.dense)
        self.record = replace(self.record, chunks=self._numbered, tokens=self.record.tokens + result.tokens)

    def _store(self, first: int, chunks: list[Chunk]) -> Encoded:
        """Embed and store chunks from number `first` on."""
        texts = [one.text for one in chunks]
        result = self._uses.models.of_chunks(self._config, [one.ids for one in chunks], texts)
        self._uses.tell(result.tokens)
        sparse = result.sparse or repeat(None, len(chunks))
        self._uses.store.put(
            [
                self._point(first + number, *made)
                for number, made in enumerate(zip(chunks, result.dense, sparse, strict=True))
            ]
        )
        return result

    def _point(self, number: int, chunk: Chunk, row: np.ndarray, sparse: Weights | None) -> Any:
        record, parts = self.record, self._uses.parts
        return parts.point(
            id=parts.point_id(record.session, record.document, number),
            session=record.session, document=record.document, version=record.version, chunk=number,
            vector=row, text=chunk.text, start=chunk.start, end=chunk.end,
            page=chunk.page, heading=chunk.heading, metadata=record.attributes, sparse=sparse,
        )  # fmt: skip

    def check(self) -> None:
        """Raise the reason of `cancel`."""
        if self._cancelled is not None:
            raise self._cancelled

    def _check_size(self) -> None:
        size, most = self.record.size, self._uses.limits.max_file_bytes
        if size > most:
            raise TooLarge(
                f"the file has more than {most:,} bytes, which EMBEDDING_SESSION_MAX_FILE_BYTES allows"
            )
        if self.declared_size is not None and size > self.declared_size:
            raise UploadIncomplete(
                f"the file has more bytes than the {self.declared_size:,} that its metadata declares"
            )
        self._check(Usage(1, self._numbered, size))

    def _check(self, more: Usage) -> None:
        quotas.check(self._uses.held, more, self._uses.limits)

    def _check_complete(self, end: UploadEnd | None) -> None:
        """Raise UploadIncomplete unless all of the file came: the end of a stream alone is no sign of it."""
        size, sha256 = self.record.size, self._hash.digest()
        if self.declared_size is not None and self.declared_size != size:
            raise UploadIncomplete(
                f"the upload has {size:,} bytes; its metadata declares {self.declared_size:,}"
            )
        if end is None:
            if self.declared_size is None:
                raise UploadIncomplete(
                    "the upload ended without its last message (UploadEnd), and its metadata declares no size"
                )
            return
        if (end.chunks, end.size, end.sha256) != (self._messages, size, sha256):
            raise UploadIncomplete(
                f"the upload has {self._messages:,} chunks of {size:,} bytes, its last message tells of "
                f"{end.chunks:,} of {end.size:,} bytes or of another SHA-256"
            )
