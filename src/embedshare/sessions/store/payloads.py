"""What an engine keeps of a chunk and of a document's manifest, and a chunk read back from it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from embedshare.errors import InvalidInput
from embedshare.sessions.store import metadata
from embedshare.sessions.store.base import Found, Point, derived_id, point_id
from embedshare.sessions.store.engine import Hit, Record

#: Keys that are indexed, and their types.
INDEXED = {
    "session": "keyword", "document": "keyword", "version": "keyword", "page": "integer",
    "manifest_of": "keyword",
}  # fmt: skip


def version_key(session: str, document: str, version: str) -> str:
    """The name of a version that no other document shares. Raises InvalidInput."""
    for value, what in ((session, "a session"), (document, "a document"), (version, "a version")):
        if not metadata.text(value, what):
            raise InvalidInput(f"{what} needs a name")
    return str(derived_id("version", session, document, version))


def record(point: Point, unit: np.ndarray, schema: Mapping[str, str]) -> Record:
    """The record of a chunk, whose vector at length 1 is `unit`. Raises InvalidInput with its number."""
    try:
        if isinstance(point.chunk, bool) or not isinstance(point.chunk, int) or point.chunk < 0:
            raise InvalidInput("its number is a whole one from 0")
        version = version_key(point.session, point.document, point.version)
        if point.id != point_id(point.session, point.document, point.chunk):
            raise InvalidInput("its id is not point_id of session, document and chunk")
        payload = _payload(point, version, schema)
        return Record(derived_id(version, point.chunk), unit.tolist(), payload, point.sparse)
    except InvalidInput as error:
        raise InvalidInput(f"chunk {point.chunk}: {error}", **error.fields, chunk=point.chunk) from None


def manifest(session: str, document: str, version: str, chunks: int, dimension: int) -> Record:
    """The record of a manifest. It has no `session`, so no search finds it, whatever its vector is."""
    payload = {
        "manifest_of": session, "manifest_document": document, "manifest_version": version,
        "manifest_chunks": chunks,
    }  # fmt: skip
    return Record(derived_id("manifest", session, document), [1.0] + [0.0] * (dimension - 1), payload)


def found(hit: Hit) -> Found:
    """The chunk that an engine found."""
    kept = hit.payload
    return Found(
        point_id(kept["session"], kept["document"], kept["chunk"]),
        hit.score,
        kept["document"],
        kept["chunk"],
        kept["text"],
        kept["start"],
        kept["end"],
        kept.get("page"),
        kept.get("heading"),
        msgspec.json.decode(kept["metadata"]),
    )


def clamped(score: float) -> float:
    """The score within [-1, 1], which rounding may exceed."""
    return min(max(score, -1.0), 1.0)


def _payload(point: Point, version: str, schema: Mapping[str, str]) -> dict[str, Any]:
    cleaned = metadata.cleaned(point.metadata)
    payload = {
        "session": point.session,
        "document": point.document,
        "version": version,
        "chunk": point.chunk,
        "text": metadata.text(point.text, "its text"),
        "start": int(point.start),
        "end": int(point.end),
        # As text, since the embedded engine changes some numbers' last digit.
        "metadata": msgspec.json.encode(cleaned).decode(),
    }
    if point.page is not None:
        payload["page"] = int(point.page)
    if point.heading is not None:
        payload["heading"] = metadata.text(point.heading, "its heading")
    return payload | metadata.copies(cleaned, schema)
