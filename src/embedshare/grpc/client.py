"""The client of the session server that web workers use; its errors are those of embedshare.

A process that has used gRPC must not fork: each process makes its own channel, at its first call.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import grpc
import numpy as np

from embedshare import platforms
from embedshare.errors import InvalidInput, TooLarge
from embedshare.grpc import fastembed_pb2 as pb
from embedshare.grpc import faults, messages, proof
from embedshare.grpc.fastembed_pb2_grpc import FastEmbedServiceStub
from embedshare.hosts import is_loopback
from embedshare.ipc import authkey
from embedshare.settings import Settings
from embedshare.telemetry import request_ids

_METHOD = f"/{pb.DESCRIPTOR.services_by_name['FastEmbedService'].full_name}/"
#: The most bytes of a file in one message.
MOST_CHUNK = 1 << 20
#: Bytes of a message besides its chunk, at most.
_AROUND_CHUNK = 1024


class Channels:
    """A process's channels, by address."""

    def __init__(self) -> None:
        self._begin()
        platforms.after_fork_in_child(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, FastEmbedServiceStub] = {}

    def stub(self, settings: Settings) -> FastEmbedServiceStub:
        """The methods of the session server of these settings, in this process."""
        address = _reached(settings)
        with self._lock:
            found = self._open.get(address)
            if found is None:
                channel = grpc.insecure_channel(address, options=_options(settings))
                found = self._open[address] = FastEmbedServiceStub(channel)  # type: ignore[no-untyped-call]
            return found


class SessionClient:
    """The sessions of one owner; thread-safe.

    Every method raises the server's errors, SessionServerUnavailable if it does not answer, DeadlineExceeded,
    and ServerUnavailable or InsecureKey without the model server's key.
    """

    _channels: ClassVar[Channels] = Channels()

    def __init__(self, settings: Settings, owner: str = "", api_key: str | None = None) -> None:
        """`owner`: for whom the calls are, which the model server's key proves; with an `api_key` its owner
        is."""
        self._settings = settings
        self._owner = owner
        self._api_key = api_key

    @classmethod
    def of(cls, settings: Settings, owner: str) -> SessionClient:
        """The sessions of an owner, on the session server of these settings."""
        return cls(settings, owner)

    def create_session(
        self,
        session_id: str | None = None,
        model: str = "",
        *,
        chunk_size: int | None = None,
        chunk_overlap: int | None = None,
        metadata_schema: Mapping[str, str] | None = None,
        qdrant_config: Mapping[str, Any] | None = None,
        sparse_model: str | None = None,
    ) -> dict[str, Any]:
        """A new session, as `get_session` has it; with a `sparse_model` for hybrid searches.

        Raises InvalidInput, SessionExists, QuotaExceeded, UnknownModel, NotServed, Forbidden.
        """
        try:
            request = pb.CreateSessionRequest(
                session_id=session_id, model_name=model, chunk_size=chunk_size, chunk_overlap=chunk_overlap,
                metadata_schema=metadata_schema, qdrant_config=qdrant_config, sparse_model=sparse_model,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the session cannot be created: {error}") from None
        made = self._call("CreateSession", request)
        return self.get_session(made.session_id)

    def get_session(self, session_id: str) -> dict[str, Any]:
        """The session in plain values. Raises UnknownSession."""
        return messages.session_values(self._call("GetSession", pb.GetSessionRequest(session_id=session_id)))

    def list_sessions(self) -> list[dict[str, Any]]:
        """The owner's sessions, the oldest first."""
        found = self._call("ListSessions", pb.ListSessionsRequest())
        return [messages.session_values(one) for one in found.sessions]

    def update_session(
        self, session_id: str, *, chunk_size: int | None = None, chunk_overlap: int | None = None
    ) -> dict[str, Any]:
        """Change the chunking of a session without documents. Raises SessionExists if it has some."""
        request = pb.UpdateSessionRequest(
            session_id=session_id, chunk_size=chunk_size, chunk_overlap=chunk_overlap
        )
        return messages.session_values(self._call("UpdateSession", request))

    def destroy_session(self, session_id: str) -> None:
        """Delete a session with all that it holds. Raises UnknownSession."""
        self._call("DestroySession", pb.DestroySessionRequest(session_id=session_id))

    def process_file(
        self,
        session_id: str,
        filename: str,
        content_type: str | None,
        chunks: Iterable[bytes],
        metadata: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Upload a file; the stored document's id and figures. What `chunks` raises ends the upload, and
        nothing is stored.

        Raises UploadIncomplete, DocumentUnreadable, TooLarge, QuotaExceeded.
        """
        described = pb.FileMetadata(
            filename=filename, content_type=content_type or "", metadata=messages.as_text(metadata or {})
        )
        most = min(MOST_CHUNK, self._settings.server.max_message_bytes - _AROUND_CHUNK)
        source = _Upload(session_id, described, chunks, most)
        stored = self._call("ProcessFileStream", iter(source), timeout=timeout, failed=source.failed)
        return {
            "success": stored.success, "message": stored.message,
            "chunks_processed": stored.chunks_processed, "embeddings_created": stored.embeddings_created,
            "points_stored": stored.points_stored, "chunk_ids": list(stored.chunk_ids),
            "document_id": stored.document_id,
        }  # fmt: skip

    def get_embeddings(self, session_id: str, texts: Sequence[str]) -> np.ndarray:
        """Float32 rows (n, dimension), one of each text, as of documents of the session."""
        if isinstance(texts, str):
            raise InvalidInput("texts must be a list of texts; a single text would be taken for its letters")
        request = pb.GetEmbeddingsRequest(session_id=session_id, texts=texts, packed=True)
        found = self._call("GetEmbeddings", request, timeout=self._settings.client.timeout_s)
        return np.frombuffer(bytearray(found.packed), "<f4").reshape(-1, found.dimension)

    def search(
        self,
        session_id: str,
        query: str,
        top_k: int = 10,
        filters: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
        *,
        mode: str = "",
        rerank: str | None = None,
        rerank_candidates: int | None = None,
    ) -> list[dict[str, Any]]:
        """The best chunks for the query, best first. `score_threshold`: only cosines above it.

        `mode`: dense, sparse or hybrid; by default hybrid in a session with a sparse model. `rerank`: a model
        that scores the best `rerank_candidates` of these, each then with a `rerank_score`.
        """
        if top_k < 1:
            raise InvalidInput(f"top_k is {top_k}; it is at least 1")
        request = pb.SearchRequest(
            session_id=session_id, query=query, top_k=top_k, filters=json.dumps(filters) if filters else "",
            score_threshold=score_threshold, mode=mode, rerank=rerank, rerank_candidates=rerank_candidates,
        )  # fmt: skip
        found = self._call("Search", request, timeout=self._settings.client.timeout_s)
        return [messages.hit_values(one) for one in found.hits]

    def documents(self, session_id: str) -> list[dict[str, Any]]:
        """The session's documents, and uploads under way or failed lately."""
        found = self._call("ListDocuments", pb.ListDocumentsRequest(session_id=session_id))
        return [messages.document_values(one) for one in found.documents]

    def document(self, session_id: str, document_id: str) -> dict[str, Any]:
        """A document, or the progress of its upload. Raises UnknownSession."""
        request = pb.GetDocumentRequest(session_id=session_id, document_id=document_id)
        return messages.document_values(self._call("GetDocument", request))

    def delete_document(self, session_id: str, document_id: str) -> None:
        """Delete a document. Raises UnknownSession."""
        request = pb.DeleteDocumentRequest(session_id=session_id, document_id=document_id)
        self._call("DeleteDocument", request)

    def status(self) -> dict[str, Any]:
        """The session server: version, uptime_s, sessions, documents, chunks, uploads, calls, p99_ms."""
        found = self._call("GetStatus", pb.GetStatusRequest())
        return {
            "version": found.version, "uptime_s": found.uptime_s, "sessions": found.sessions,
            "documents": found.documents, "chunks": found.chunks, "uploads": found.uploads,
            "calls": dict(found.calls), "p99_ms": dict(found.p99_ms),
        }  # fmt: skip

    def _call(
        self, method: str, request: Any, timeout: float | None = 60.0,
        failed: Callable[[], BaseException | None] = lambda: None,
    ) -> Any:  # fmt: skip
        """The answer; an upload's own failure comes before the server's view of it."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        self._check_size(request)
        call = getattr(self._channels.stub(self._settings), method)
        try:
            return call(request, timeout=timeout, metadata=self._metadata(method))
        except grpc.RpcError as error:
            failure = failed()
            raise (faults.error_of(error, deadline) if failure is None else failure) from None

    def _metadata(self, method: str) -> list[tuple[str, str | bytes]]:
        told: list[tuple[str, str | bytes]] = []
        request_id = request_ids.current()
        if request_id is not None:
            told.append(("x-request-id", request_id.partition(",")[0]))
        if self._api_key is not None:
            return [*told, ("authorization", f"Bearer {self._api_key}")]
        key = authkey.client_key(self._settings)
        return [*told, *proof.metadata(key, _METHOD + method, self._owner)]

    def _check_size(self, request: Any) -> None:
        most = self._settings.server.max_message_bytes
        size = request.ByteSize() if hasattr(request, "ByteSize") else 0
        if size > most:
            raise TooLarge(f"the call has {size:,} bytes; EMBEDDING_MAX_MESSAGE_BYTES allows {most:,}")


class _Upload:
    """The messages of an upload, ending with their count, bytes and SHA-256."""

    def __init__(
        self, session_id: str, described: pb.FileMetadata, chunks: Iterable[bytes], most_bytes: int
    ) -> None:
        """`most_bytes`: of one message's chunk."""
        self._most_bytes = most_bytes
        self._session_id = session_id
        self._described = described
        self._chunks = chunks
        self._failure: BaseException | None = None

    def failed(self) -> BaseException | None:
        """What the chunks' own iterator raised."""
        return self._failure

    def __iter__(self) -> Iterator[pb.ProcessFileStreamRequest]:
        yield pb.ProcessFileStreamRequest(session_id=self._session_id, metadata=self._described)
        count, size, digest = 0, 0, hashlib.sha256()
        try:
            for chunk in self._chunks:
                for start in range(0, len(chunk), self._most_bytes):
                    piece = bytes(chunk[start : start + self._most_bytes])
                    count, size = count + 1, size + len(piece)
                    digest.update(piece)
                    yield pb.ProcessFileStreamRequest(chunk=piece)
        except Exception as error:  # the server stores nothing of a stream that ends like this
            self._failure = error
            return
        end = pb.UploadEnd(chunks=count, bytes=size, sha256=digest.digest())
        yield pb.ProcessFileStreamRequest(end=end)


def serves(settings: Settings, timeout_s: float) -> bool:
    """Whether the session server of these settings says that it serves, within `timeout_s` seconds."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # a supervisor needs it alone

    asked = health_pb2.HealthCheckRequest(service=_METHOD.strip("/"))
    with grpc.insecure_channel(_reached(settings), options=_options(settings)) as channel:
        try:
            found = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(found.status == health_pb2.HealthCheckResponse.SERVING)


def _reached(settings: Settings) -> str:
    """The address that reaches the session server from this machine."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.sessions.host, settings.sessions.host)
    return settings.with_values({"EMBEDDING_SESSIONS_HOST": reached}).sessions.address


def _options(settings: Settings) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.server.max_message_bytes),
        ("grpc.max_send_message_length", settings.server.max_message_bytes),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if is_loopback(settings.sessions.host):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy of HTTP_PROXY cannot reach this machine
    return options
