"""Where tests keep a store: a folder, qdrant-client's local mode, or a server that answers REST or gRPC."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from embedshare.sessions.store import remote
from embedshare.sessions.store.base import Point, VectorStore, open_embedded, open_remote, point_id
from embedshare.sessions.store.published import PublishedStore
from tests.sessions.store import qdrant_grpc, qdrant_server

KINDS = ("embedded", "local", "rest", "grpc")
Open = Callable[[str, int, Mapping[str, str]], VectorStore]


class Place:
    """Opens the same store again and again; open ones are closed at the end."""

    def __init__(self, open_one: Open, closing: ExitStack) -> None:
        self._open, self._closing = open_one, closing

    def open(
        self, identity: str = "model", dimension: int = 4, schema: Mapping[str, str] | None = None
    ) -> VectorStore:
        store = self._open(identity, dimension, schema or {})
        self._closing.callback(store.close)
        return store


@contextmanager
def place(kind: str, folder: Path) -> Iterator[Place]:
    with ExitStack() as closing:
        yield Place(_opener(kind, folder, closing), closing)


def _opener(kind: str, folder: Path, closing: ExitStack) -> Open:
    if kind == "embedded":
        return functools.partial(open_embedded, folder / "store")
    if kind == "rest":
        url = closing.enter_context(qdrant_server.running()).url
        return functools.partial(open_remote, url, None, False, "chunks")
    if kind == "grpc":
        url, _, _ = closing.enter_context(qdrant_grpc.running())
        return functools.partial(open_remote, url, None, True, "chunks")
    client = qdrant_server.LockedClient()

    def open_local(identity: str, dimension: int, schema: Mapping[str, str]) -> VectorStore:
        engine = remote.QdrantEngine(client, "chunks", lambda: None)
        engine.claim(identity, dimension)
        return PublishedStore(engine, identity, dimension, schema)

    return open_local


def vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def rows(count: int, dimension: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


def chunk_of(
    number: int, values: np.ndarray, session: str = "s", document: str = "d", version: str = "v1", **more: Any
) -> Point:
    """A chunk whose text names its version and number."""
    fields = {"text": f"{version} {number}", "start": 10 * number, "end": 10 * number + 9, "page": None}
    fields |= {"heading": None, "metadata": {}} | more
    return Point(
        point_id(session, document, number), session, document, number, values, version=version, **fields
    )


def publish(
    store: VectorStore, vectors: np.ndarray, session: str = "s", document: str = "d", version: str = "v1"
) -> None:
    """Put and publish a document of these vectors."""
    store.put([chunk_of(number, row, session, document, version) for number, row in enumerate(vectors)])
    store.publish(session, document, version, len(vectors))
