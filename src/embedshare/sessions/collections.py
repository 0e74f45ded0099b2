"""The vector stores of sessions: one of each vector space, opened at its first use."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable
from pathlib import Path

from embedshare import private_file
from embedshare.errors import InvalidInput
from embedshare.sessions.parts import Parts, VectorStore
from embedshare.sessions.records import Config, Qdrant, SessionRecord


class Collections:
    """The open stores; thread-safe. Sessions of one model and schema share one."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self._folder = folder
        self._parts = parts
        self._lock = threading.Lock()
        self._stores: dict[str, VectorStore] = {}

    def of(self, session: SessionRecord) -> VectorStore:
        """The store with a session's points. Raises ModelMismatch and the store's errors."""
        name = _name(session)
        with self._lock:
            found = self._stores.get(name)
            if found is None:
                found = self._stores[name] = self._opened(session, name)
            return found

    def keep_key(self, session: SessionRecord, api_key: str) -> None:
        """Keep the API key of a session's Qdrant server in a file of this user's. Raises OSError."""
        if api_key:
            private_file.replace(self._key_file(session), api_key.encode())

    def forget(self, session: SessionRecord, others: Iterable[SessionRecord]) -> None:
        """Close the store of a session that is gone, unless one of `others` uses it."""
        self._key_file(session).unlink(missing_ok=True)
        name = _name(session)
        if session.config.qdrant is None or any(_name(other) == name for other in others):
            return
        with self._lock:
            store = self._stores.pop(name, None)
        if store is not None:
            store.close()

    def close(self) -> None:
        """Close all stores."""
        with self._lock:
            stores, self._stores = self._stores, {}
        for store in stores.values():
            store.close()

    def _opened(self, session: SessionRecord, name: str) -> VectorStore:
        config = session.config
        if config.qdrant is None:
            folder = self._folder / "collections" / name
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._parts.open_embedded(folder, config.identity, config.dimension, config.schema)
        return self._parts.open_remote(
            url=config.qdrant.url,
            api_key=self._key(session),
            prefer_grpc=config.qdrant.prefer_grpc,
            collection=config.qdrant.collection,
            identity=config.identity,
            dimension=config.dimension,
            schema=config.schema,
        )

    def _key(self, session: SessionRecord) -> str | None:
        try:
            return private_file.read(self._key_file(session)).decode()
        except FileNotFoundError:
            return None

    def _key_file(self, session: SessionRecord) -> Path:
        return self._folder / "qdrant-keys" / session.uid


def checked_qdrant(url: str, collection: str, prefer_grpc: bool, allowed: tuple[str, ...]) -> Qdrant | None:
    """The Qdrant server that a caller names; None for the session server's own store.

    Raises InvalidInput: callers do not choose which addresses this process connects to.
    """
    if not url:
        if collection:
            raise InvalidInput("qdrant_config names a collection and no url; leave both out, or name both")
        return None
    address = url.rstrip("/")
    if address not in allowed:
        shown = ", ".join(allowed) or "none"
        raise InvalidInput(
            f"qdrant_config: the url is none of those that EMBEDDING_SESSIONS_QDRANT_URLS allows ({shown})"
        )
    if not (collection.isprintable() and 0 < len(collection) <= 255) or "/" in collection:
        raise InvalidInput(
            "qdrant_config: the collection needs a name of 1 to 255 characters without a slash"
        )
    return Qdrant(address, collection, prefer_grpc)


def _name(session: SessionRecord) -> str:
    """The name of the store with a session's points, a valid name of a folder."""
    config: Config = session.config
    parts = [config.identity, config.dimension, config.schema]
    if config.qdrant is not None:
        # By session too: each has a key of its own, which another owner must not use.
        parts += [config.qdrant.url, config.qdrant.collection, session.uid]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
