"""A session server in memory, for tests of what is in front of one: its functions, errors and owners."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from embedshare.errors import (
    DocumentUnreadable,
    EmbedshareError,
    InvalidInput,
    QuotaExceeded,
    SessionExists,
    SessionServerUnavailable,
    UnknownSession,
)

Embed = Callable[[Sequence[str]], np.ndarray]
#: Endings of files that it reads.
READS = (".txt", ".md", ".csv")
#: Characters that are embedded of a chunk.
MOST_CHARS = 1000


class SessionStandIn:
    """All sessions. While `goes_on` is cleared, uploads wait once their first chunk is stored."""

    def __init__(self, embed: Embed, most_documents: int = 100) -> None:
        self.embed = embed
        self.most_documents = most_documents
        self.sessions: dict[tuple[str, str], dict[str, Any]] = {}
        self.files: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        self.pieces: list[int] = []
        self.is_away = False
        self.goes_on = threading.Event()
        self.goes_on.set()

    def of_owner(self, owner: str) -> OwnedSessions:
        if self.is_away:
            raise SessionServerUnavailable("the session server does not answer at 127.0.0.1:50051")
        return OwnedSessions(self, owner)


class OwnedSessions:
    """The sessions of one owner."""

    def __init__(self, all_of_them: SessionStandIn, owner: str) -> None:
        self._all = all_of_them
        self._owner = owner

    def create_session(
        self,
        session_id: str | None,
        model: str,
        *,
        chunk_size: int | None,
        chunk_overlap: int | None,
        metadata_schema: Mapping[str, str],
        qdrant_config: Mapping[str, Any] | None,
        sparse_model: str | None,
    ) -> dict[str, Any]:
        name = session_id or uuid.uuid4().hex
        key = self._owner, name
        if key in self._all.sessions:
            raise SessionExists(f"there is a session {name!r} already")
        size = 512 if chunk_size is None else chunk_size
        if size > 512:
            raise InvalidInput(f"chunk_size is {size}; the model's longest sequence is 512 tokens")
        self._all.sessions[key] = {
            "session_id": name,
            "model": model,
            "sparse_model": sparse_model,
            "dimension": self._all.embed(["a"]).shape[1],
            "chunk_size": size,
            "chunk_overlap": 50 if chunk_overlap is None else chunk_overlap,
            "metadata_schema": dict(metadata_schema),
            "created_at": time.time(),
            "expires_at": time.time() + 86_400,
            "qdrant_url": (qdrant_config or {}).get("url", ""),
            "collection": (qdrant_config or {}).get("collection", ""),
        }
        self._all.files[key] = {}
        return self.get_session(name)

    def get_session(self, session_id: str) -> dict[str, Any]:
        session, files = self._found(session_id), self._files(session_id)
        ready = [one for one in files.values() if one["state"] == "ready"]
        counts = {"documents": len(ready), "chunks": sum(one["chunks"] for one in ready)}
        return {**session, **counts, "bytes": sum(one["bytes"] for one in ready)}

    def list_sessions(self) -> list[dict[str, Any]]:
        return [self.get_session(name) for owner, name in self._all.sessions if owner == self._owner]

    def update_session(
        self, session_id: str, *, chunk_size: int | None, chunk_overlap: int | None
    ) -> dict[str, Any]:
        if self.get_session(session_id)["documents"]:
            raise SessionExists(f"the session {session_id!r} has documents, so it keeps its chunking")
        changed = {"chunk_size": chunk_size, "chunk_overlap": chunk_overlap}
        self._found(session_id).update({name: one for name, one in changed.items() if one is not None})
        return self.get_session(session_id)

    def destroy_session(self, session_id: str) -> None:
        self._found(session_id)
        del self._all.sessions[self._owner, session_id], self._all.files[self._owner, session_id]

    def process_file(
        self,
        session_id: str,
        filename: str,
        content_type: str | None,
        chunks: Iterable[bytes],
        metadata: Mapping[str, Any],
    ) -> dict[str, Any]:
        session, files = self._found(session_id), self._files(session_id)
        document = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{session_id}/{filename}"))
        if len(files) >= self._all.most_documents and document not in files:
            raise QuotaExceeded(f"the session has {len(files)} documents, its limit")
        progress = files[document] = {
            "document_id": document, "filename": filename, "state": "ingesting", "bytes": 0, "size": None,
            "chunks": 0, "stored": 0, "error": None, "created_at": time.time(), "metadata": dict(metadata),
            "points": [],
        }  # fmt: skip
        try:
            return self._read(session, progress, chunks)
        except EmbedshareError as error:
            progress.update(state="failed", error=error.message, stored=0, points=[])
            raise

    def _read(
        self, session: dict[str, Any], progress: dict[str, Any], chunks: Iterable[bytes]
    ) -> dict[str, Any]:
        filename, document, whole = progress["filename"], progress["document_id"], b""
        if not filename.endswith(READS):
            said = f"{filename} is of no kind that can be read: {', '.join(READS)}"
            raise DocumentUnreadable(said, reason="unsupported")
        for piece in chunks:
            self._all.pieces.append(len(piece))
            whole += piece
            progress["bytes"] += len(piece)
        progress["size"] = len(whole)
        points = self._points(session, document, whole.decode(), progress["metadata"])
        if not points:
            raise DocumentUnreadable(f"{filename} has no text", reason="empty")
        for point in points:
            progress["points"].append(point)
            progress["chunks"] = progress["stored"] = len(progress["points"])
            if not self._all.goes_on.wait(60):
                raise AssertionError("the test never let the upload go on")
        progress["state"] = "ready"
        count = len(points)
        return {
            "success": True, "message": f"stored {filename}", "chunks_processed": count,
            "embeddings_created": count, "points_stored": count,
            "chunk_ids": [one["id"] for one in points], "document_id": document,
        }  # fmt: skip

    def get_embeddings(self, session_id: str, texts: Sequence[str]) -> np.ndarray:
        self._found(session_id)
        return self._all.embed(texts)

    def search(
        self,
        session_id: str,
        query: str,
        top_k: int,
        filters: Mapping[str, Any] | None,
        score_threshold: float | None,
        *,
        mode: str,
        rerank: str | None,
        rerank_candidates: int | None,
    ) -> list[dict[str, Any]]:
        self._found(session_id)
        wanted, found = self._all.embed([query])[0], []
        for document in self._files(session_id).values():
            if document["state"] == "ready":
                found += [self._scored(point, wanted) for point in document["points"]]
        found = [one for one in found if (filters or {}).items() <= one["metadata"].items()]
        found = [one for one in found if score_threshold is None or one["score"] > score_threshold]
        return sorted(found, key=lambda one: (-one["score"], one["id"]))[:top_k]

    def documents(self, session_id: str) -> list[dict[str, Any]]:
        return [_told(one) for one in self._files(session_id).values()]

    def document(self, session_id: str, document_id: str) -> dict[str, Any]:
        if document_id not in self._files(session_id):
            raise UnknownSession(f"the session {session_id!r} has no document {document_id!r}")
        return _told(self._files(session_id)[document_id])

    def delete_document(self, session_id: str, document_id: str) -> None:
        if self.document(session_id, document_id)["state"] != "ready":
            raise UnknownSession(f"the session {session_id!r} has no document {document_id!r}")
        del self._files(session_id)[document_id]

    def status(self) -> dict[str, Any]:
        files = [one for of in self._all.files.values() for one in of.values()]
        return {
            "version": "0.1.0", "uptime_s": 1.0, "sessions": len(self._all.sessions), "documents": len(files),
            "chunks": sum(one["chunks"] for one in files),
            "uploads": sum(one["state"] == "ingesting" for one in files),
        }  # fmt: skip

    def _found(self, session_id: str) -> dict[str, Any]:
        try:
            return self._all.sessions[self._owner, session_id]
        except KeyError:
            raise UnknownSession(f"there is no session {session_id!r}") from None

    def _files(self, session_id: str) -> dict[str, dict[str, Any]]:
        self._found(session_id)
        return self._all.files[self._owner, session_id]

    def _points(
        self, session: dict[str, Any], document: str, text: str, metadata: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """A chunk for each paragraph; lines that begin with # are headings."""
        points: list[dict[str, Any]] = []
        heading, at = None, 0
        for part in text.split("\n\n"):
            if part.startswith("#"):
                heading = part.strip("# \n")
            elif part.strip():
                id = str(uuid.uuid5(uuid.UUID(document), f"{session['session_id']}/{len(points)}"))
                points.append({
                    "id": id, "document": document, "chunk": len(points), "text": part, "start": at,
                    "end": at + len(part), "page": None, "heading": heading, "metadata": metadata,
                    "vector": self._all.embed([part[:MOST_CHARS]])[0],
                })  # fmt: skip
            at += len(part) + 2
        return points

    @staticmethod
    def _scored(point: dict[str, Any], wanted: np.ndarray) -> dict[str, Any]:
        vector = point["vector"]
        cosine = float(vector @ wanted / (np.linalg.norm(vector) * np.linalg.norm(wanted)))
        return {**{name: one for name, one in point.items() if name != "vector"}, "score": cosine}


def _told(document: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in document.items() if name != "points"}
