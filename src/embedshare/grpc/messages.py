"""Sessions, documents and hits as messages, and messages as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from embedshare.calls import EmbedResult
from embedshare.errors import InvalidInput, TooLarge
from embedshare.grpc import fastembed_pb2 as pb
from embedshare.sessions.library import Progress
from embedshare.sessions.manager import Session, Wanted
from embedshare.sessions.search import Hit, Search


def wanted(request: pb.CreateSessionRequest) -> Wanted:
    """The session that a request asks for. An unset chunking is the default, and so is a size of 0, which the
    seed's clients send for it."""
    qdrant = request.qdrant_config
    return Wanted(
        request.session_id, request.model_name, request.chunk_size or None,
        request.chunk_overlap if request.HasField("chunk_overlap") else None,
        dict(request.metadata_schema), qdrant.url, qdrant.collection, qdrant.api_key, qdrant.prefer_grpc,
        request.sparse_model if request.HasField("sparse_model") else None,
    )  # fmt: skip


def session(found: Session, expires_at: float | None) -> pb.Session:
    """The message of a session."""
    config, usage = found.config, found.usage
    return pb.Session(
        session_id=found.record.name, model=config.model, identity=bytes.fromhex(config.identity),
        dimension=config.dimension, chunk_size=config.chunk_size, chunk_overlap=config.chunk_overlap,
        metadata_schema=config.schema,
        qdrant_url=config.qdrant.url if config.qdrant else "",
        collection=config.qdrant.collection if config.qdrant else "",
        documents=usage.documents, chunks=usage.chunks, bytes=usage.size, tokens=usage.tokens,
        searches=found.searches, created_at=found.record.created_at.timestamp(),
        used_at=found.used_at.timestamp(), expires_at=expires_at,
        sparse_model=config.sparse.model if config.sparse else None,
    )  # fmt: skip


def document(progress: Progress) -> pb.Document:
    """The message of a document."""
    record = progress.record
    return pb.Document(
        document_id=record.document, filename=record.filename, content_type=record.content_type,
        state=progress.state, error=progress.error, size=progress.size, bytes=record.size,
        chunks=record.chunks, stored=progress.stored, tokens=record.tokens,
        metadata=json.dumps(record.attributes), created_at=record.created_at.timestamp(),
    )  # fmt: skip


def search(request: pb.SearchRequest) -> Search:
    """What a request asks for. Raises InvalidInput."""
    return Search(
        request.query, request.top_k or None, filters(request.filters),
        request.score_threshold if request.HasField("score_threshold") else None, request.mode or None,
        request.rerank if request.HasField("rerank") else None,
        request.rerank_candidates if request.HasField("rerank_candidates") else None,
    )  # fmt: skip


def hit(one: Hit) -> pb.SearchHit:
    """The message of a chunk that a search found."""
    found = one.chunk
    return pb.SearchHit(
        id=str(found.id), score=one.score, document_id=found.document, chunk=found.chunk, text=found.text,
        start=found.start, end=found.end, page=found.page, heading=found.heading,
        metadata=json.dumps(found.metadata), rerank_score=one.rerank_score,
    )  # fmt: skip


def embeddings(result: EmbedResult, packed: bool, most_bytes: int) -> pb.GetEmbeddingsResponse:
    """The message of vectors. Raises TooLarge if it would have more than `most_bytes`."""
    rows = np.ascontiguousarray(result.rows, "<f4")
    if rows.nbytes + (1 << 16) > most_bytes:
        raise TooLarge(
            f"the answer has {rows.nbytes:,} bytes; EMBEDDING_MAX_MESSAGE_BYTES allows {most_bytes:,}: send "
            "fewer texts in a call"
        )
    described = result.description
    return pb.GetEmbeddingsResponse(
        embeddings=[] if packed else [pb.Embedding(values=row) for row in rows.tolist()],
        packed=rows.tobytes() if packed else b"",
        dimension=rows.shape[1],
        model=described.model_name,
        identity=bytes.fromhex(described.identity),
    )


def filters(text: str) -> dict[str, Any]:
    """The filters in a request, a JSON object. Raises InvalidInput."""
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        raise InvalidInput("filters is not JSON") from None
    if not isinstance(found, dict):
        raise InvalidInput("filters must be a JSON object of fields and values")
    return found


def session_values(message: pb.Session) -> dict[str, Any]:
    """A session in plain values."""
    return {
        "session_id": message.session_id, "model": message.model, "identity": message.identity.hex(),
        "dimension": message.dimension, "chunk_size": message.chunk_size,
        "chunk_overlap": message.chunk_overlap, "metadata_schema": dict(message.metadata_schema),
        "qdrant_url": message.qdrant_url, "collection": message.collection,
        "documents": message.documents, "chunks": message.chunks, "bytes": message.bytes,
        "tokens": message.tokens, "searches": message.searches, "created_at": message.created_at,
        "used_at": message.used_at,
        "expires_at": message.expires_at if message.HasField("expires_at") else None,
        "sparse_model": message.sparse_model if message.HasField("sparse_model") else None,
    }  # fmt: skip


def document_values(message: pb.Document) -> dict[str, Any]:
    """A document in plain values."""
    return {
        "document_id": message.document_id, "filename": message.filename,
        "content_type": message.content_type, "state": message.state,
        "error": message.error if message.HasField("error") else None,
        "size": message.size if message.HasField("size") else None,
        "bytes": message.bytes, "chunks": message.chunks, "stored": message.stored, "tokens": message.tokens,
        "metadata": json.loads(message.metadata), "created_at": message.created_at,
    }  # fmt: skip


def hit_values(message: pb.SearchHit) -> dict[str, Any]:
    """A hit in plain values."""
    return {
        "id": message.id, "score": message.score,
        "rerank_score": message.rerank_score if message.HasField("rerank_score") else None,
        "document": message.document_id, "chunk": message.chunk,
        "text": message.text, "start": message.start, "end": message.end,
        "page": message.page if message.HasField("page") else None,
        "heading": message.heading if message.HasField("heading") else None,
        "metadata": json.loads(message.metadata),
    }  # fmt: skip


def as_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata in the form of an upload; the session's schema gives the values their types again."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
