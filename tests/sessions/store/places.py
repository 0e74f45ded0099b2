"""Where tests keep a store: a folder, qdrant-client's local mode, or a server that answers REST or gRPC."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from embedshare.sessions.store import remote
from embedshare.sessions.store.base import VectorStore, open_embedded, open_remote
from embedshare.sessions.store.published import PublishedStore
from tests.sessions.store import qdrant_grpc, qdrant_server

KINDS = ("embedded", "local", "rest", "grpc")
Open = Callable[[str, int, Mapping[str, str], str | None], VectorStore]


class Place:
    """Opens the same store again and again; open ones are closed at the end."""

    def __init__(self, open_one: Open, closing: ExitStack) -> None:
        self._open, self._closing = open_one, closing

    def open(
        self,
        identity: str = "model",
        dimension: int = 4,
        schema: Mapping[str, str] | None = None,
        sparse: str | None = None,
    ) -> VectorStore:
        store = self._open(identity, dimension, schema or {}, sparse)
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
        return _remote(url, False)
    if kind == "grpc":
        url, _, _ = closing.enter_context(qdrant_grpc.running())
        return _remote(url, True)
    client = qdrant_server.LockedClient()

    def open_local(
        identity: str, dimension: int, schema: Mapping[str, str], sparse: str | None
    ) -> VectorStore:
        engine = remote.QdrantEngine(client, "chunks", lambda: None)
        engine.claim(identity, dimension, sparse)
        return PublishedStore(engine, identity, dimension, schema, sparse)

    return open_local


def _remote(url: str, prefer_grpc: bool) -> Open:
    def open_one(identity: str, dimension: int, schema: Mapping[str, str], sparse: str | None) -> VectorStore:
        return open_remote(url, None, prefer_grpc, "chunks", identity, dimension, schema, sparse=sparse)

    return open_one
