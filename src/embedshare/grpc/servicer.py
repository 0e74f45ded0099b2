"""The methods of FastEmbedService. What waits for a model, the store or the database runs in threads."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import embedshare
from embedshare.errors import EmbedshareError, InvalidInput, UploadIncomplete
from embedshare.grpc import callers, interceptors, messages, model_access
from embedshare.grpc import fastembed_pb2 as pb
from embedshare.grpc.fastembed_pb2_grpc import FastEmbedServiceServicer
from embedshare.grpc.interceptors import CallCounts
from embedshare.sessions import uploads
from embedshare.sessions.embedding import Models
from embedshare.sessions.ingest import Upload, UploadEnd
from embedshare.sessions.library import File, Library
from embedshare.sessions.manager import Session, SessionManager
from embedshare.sessions.records import DocumentRecord
from embedshare.sessions.search import Searches

T = TypeVar("T")
#: Threads for all calls but uploads.
CALLS = 16
#: Seconds between two messages of an upload, at most: a caller that stalls does not keep its place.
STALL_S = 60.0
#: Bytes of a chunk in an answer that lists the chunks.
ID_BYTES = 40


class Service(NamedTuple):
    """What the methods work with."""

    sessions: SessionManager
    library: Library
    searches: Searches
    models: Models
    counts: CallCounts
    most_bytes: int
    """Of one message."""


class SessionServicer(FastEmbedServiceServicer):
    """Every method raises errors of embedshare, which an interceptor turns into a status."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._started = time.monotonic()
        self._calls = ThreadPoolExecutor(CALLS, "call")
        self._uploads = ThreadPoolExecutor(2 * uploads.MOST, "upload")  # one ends while another begins
        self._aborting: set[asyncio.Future[None]] = set()

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Any) -> pb.SessionResponse:  # noqa: N802
        wanted, caller = messages.wanted(request), callers.current()

        def create() -> Session:
            model_access.check(self._service.models, caller, wanted.model)
            if wanted.sparse_model is not None:
                model_access.check(self._service.models, caller, wanted.sparse_model)
            return self._service.sessions.create(caller.owner, wanted)

        made = await self._call(create)
        return pb.SessionResponse(session_id=made.record.name, success=True, message="created")

    async def GetSession(self, request: pb.GetSessionRequest, context: Any) -> pb.Session:  # noqa: N802
        return self._session(self._found(request.session_id))

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:  # noqa: N802
        found = self._service.sessions.of(callers.current().owner)
        return pb.ListSessionsResponse(sessions=map(self._session, found))

    async def UpdateSession(self, request: pb.UpdateSessionRequest, context: Any) -> pb.Session:  # noqa: N802
        found = self._found(request.session_id)
        size = request.chunk_size if request.HasField("chunk_size") else None
        overlap = request.chunk_overlap if request.HasField("chunk_overlap") else None
        return self._session(await self._call(self._service.sessions.update, found, size, overlap))

    async def DestroySession(self, request: pb.DestroySessionRequest, context: Any) -> pb.SessionResponse:  # noqa: N802
        found = self._found(request.session_id)
        await self._call(self._service.sessions.destroy, found)
        return pb.SessionResponse(session_id=found.record.name, success=True, message="destroyed")

    async def GetEmbeddings(self, request: pb.GetEmbeddingsRequest, context: Any) -> pb.GetEmbeddingsResponse:  # noqa: N802
        found, service, limit = self._found(request.session_id), self._service, interceptors.deadline()

        def embed() -> pb.GetEmbeddingsResponse:
            result = service.library.embeddings(found, list(request.texts), limit)
            return messages.embeddings(result, request.packed, service.most_bytes)

        return await self._call(embed)

    async def Search(self, request: pb.SearchRequest, context: Any) -> pb.SearchResponse:  # noqa: N802
        found, limit, caller = self._found(request.session_id), interceptors.deadline(), callers.current()
        asked = messages.search(request)

        def search() -> pb.SearchResponse:
            if asked.rerank is not None:
                model_access.check(self._service.models, caller, asked.rerank)
            hits = self._service.searches.search(found, asked, limit)
            return pb.SearchResponse(hits=map(messages.hit, hits))

        return await self._call(search)

    async def ListDocuments(self, request: pb.ListDocumentsRequest, context: Any) -> pb.ListDocumentsResponse:  # noqa: N802
        found = await self._call(self._service.library.documents, self._found(request.session_id))
        return pb.ListDocumentsResponse(documents=map(messages.document, found))

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Any) -> pb.Document:  # noqa: N802
        found = self._found(request.session_id)
        return messages.document(await self._call(self._service.library.document, found, request.document_id))

    async def DeleteDocument(  # noqa: N802
        self, request: pb.DeleteDocumentRequest, context: Any
    ) -> pb.DeleteDocumentResponse:
        found = self._found(request.session_id)
        await self._call(self._service.library.delete, found, request.document_id)
        return pb.DeleteDocumentResponse()

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:  # noqa: N802
        service = self._service
        sessions, documents, chunks = service.sessions.totals()
        calls, p99_ms = service.counts.snapshot()
        return pb.GetStatusResponse(
            version=embedshare.__version__, uptime_s=time.monotonic() - self._started,
            sessions=sessions, documents=documents, chunks=chunks, uploads=service.sessions.uploads.count,
            calls=calls, p99_ms=p99_ms,
        )  # fmt: skip

    async def ProcessFileStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ProcessFileStreamRequest], context: Any
    ) -> pb.ProcessFileStreamResponse:
        first = await _next(request_iterator)
        if first is None or first.WhichOneof("data") != "metadata":
            raise InvalidInput("the first message of an upload must have the session_id and the metadata")
        session, described = self._found(first.session_id), first.metadata
        file = File(
            described.filename, described.content_type, described.size or None, dict(described.metadata)
        )
        upload = await self._begin(session, file)
        try:
            end = await self._feed(upload, request_iterator)
            record = await self._run(self._uploads, self._service.library.commit, session, upload, end)
        except EmbedshareError as error:
            await self._abort(session, upload, error)
            raise
        except BaseException:  # the caller has left, or a fault
            self._abort(session, upload, UploadIncomplete("the upload was cut off"))
            raise
        return self._stored(record)

    async def drain(self, limit_s: float) -> bool:
        """Wait for calls in flight; whether they all ended within `limit_s` seconds."""
        end = time.monotonic() + limit_s
        while self._service.counts.in_flight and time.monotonic() < end:
            await asyncio.sleep(0.02)
        ended = not self._service.counts.in_flight
        if self._aborting:
            await asyncio.wait(self._aborting, timeout=max(0.0, end - time.monotonic()) + 1.0)
        return ended

    def close(self) -> None:
        """End the threads that have nothing to do."""
        for pool in (self._calls, self._uploads):
            pool.shutdown(wait=False, cancel_futures=True)

    def _found(self, name: str) -> Session:
        return self._service.sessions.get(callers.current().owner, name)

    def _session(self, found: Session) -> pb.Session:
        return messages.session(found, self._service.sessions.expires_at(found))

    async def _feed(
        self, upload: Upload, requests: AsyncIterator[pb.ProcessFileStreamRequest]
    ) -> UploadEnd | None:
        """The upload's last message, once all before it are taken; None if it ended without one."""
        cancelled, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(cancelled.set)

        upload.on_cancel = wake
        while (message := await _next_or_cancelled(requests, cancelled, upload)) is not None:
            kind = message.WhichOneof("data")
            if kind == "end":
                return UploadEnd(message.end.chunks, message.end.bytes, message.end.sha256)
            if kind != "chunk":
                raise InvalidInput("an upload has one message with metadata, the first")
            await self._run(self._uploads, upload.feed, message.chunk)
        return None

    async def _begin(self, session: Session, file: File) -> Upload:
        """An upload, which is dropped if its caller leaves before it has begun."""
        beginning = asyncio.ensure_future(
            self._run(self._uploads, self._service.library.begin, session, file)
        )
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:

            def drop(begun: asyncio.Future[Upload]) -> None:
                if begun.exception() is None:
                    self._abort(session, begun.result(), UploadIncomplete("the upload was cut off"))

            beginning.add_done_callback(drop)
            raise

    def _abort(self, session: Session, upload: Upload, error: EmbedshareError) -> asyncio.Future[None]:
        """Drop an upload, whether or not its call still waits."""
        upload.on_cancel = lambda: None
        aborting = asyncio.ensure_future(
            self._run(self._uploads, self._service.library.abort, session, upload, error)
        )
        self._aborting.add(aborting)
        aborting.add_done_callback(self._aborting.discard)
        return asyncio.shield(aborting)

    def _stored(self, record: DocumentRecord) -> pb.ProcessFileStreamResponse:
        """The answer to an upload. Without `chunk_ids` where they would exceed the limit of a message."""
        fits = record.chunks * ID_BYTES <= self._service.most_bytes - 1024
        return pb.ProcessFileStreamResponse(
            success=True, message="stored", chunks_processed=record.chunks, embeddings_created=record.chunks,
            points_stored=record.chunks, chunk_ids=self._service.library.chunk_ids(record) if fits else [],
            document_id=record.document,
        )  # fmt: skip

    async def _call(self, do: Callable[..., T], *given: Any) -> T:
        return await self._run(self._calls, do, *given)

    @staticmethod
    async def _run(threads: Executor, do: Callable[..., T], *given: Any) -> T:
        """`do` in a thread, with the request's id."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(threads, context.run, do, *given)


async def _next(requests: AsyncIterator[pb.ProcessFileStreamRequest]) -> pb.ProcessFileStreamRequest | None:
    try:
        return await asyncio.wait_for(requests.__anext__(), STALL_S)
    except StopAsyncIteration:
        return None
    except asyncio.TimeoutError:
        raise UploadIncomplete(f"no message of the upload came for {STALL_S:g} s") from None


async def _next_or_cancelled(
    requests: AsyncIterator[pb.ProcessFileStreamRequest], cancelled: asyncio.Event, upload: Upload
) -> pb.ProcessFileStreamRequest | None:
    """The next message, None at the end. Raises the reason of the upload's `cancel`."""
    following = asyncio.ensure_future(_next(requests))
    leaving = asyncio.ensure_future(cancelled.wait())
    try:
        await asyncio.wait({following, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            upload.check()
        return await following
    finally:
        following.cancel()
        leaving.cancel()
