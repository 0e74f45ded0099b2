"""The vector stores of sessions: one of each vector space, opened at its first use."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

from embedshare import private_file
from embedshare.errors import InvalidInput
from embedshare.sessions.parts import Parts, VectorStore
from embedshare.sessions.records import Qdrant, SessionRecord


class Collections:
    """The open stores; thread-safe. Sessions of one model share one, or those of a Qdrant collection and its
    API key."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self._folder = folder
        self._parts = parts
        self._lock = threading.Lock()
        self._stores: dict[str, VectorStore] = {}
        self._of_sessions: dict[str, str] = {}
        """The store's name of each session that has declared its fields there."""

    def of(self, session: SessionRecord) -> VectorStore:
        """The store with a session's points.

        Raises InvalidInput for a schema that it refuses, ModelMismatch and the store's errors.
        """
        with self._lock:
            name = self._of_sessions.get(session.uid)
            if name is not None:
                return self._stores[name]
            name = self._name(session)
            store = self._stores.get(name)
            if store is None:
                store = self._stores[name] = self._opened(session, name)
            store.declare(session.uid, session.config.schema)
            self._of_sessions[session.uid] = name
            return store

    def keep_key(self, session: SessionRecord, api_key: str) -> None:
        """Keep the API key of a session's Qdrant server in a file of this user's. Raises OSError."""
        if api_key:
            private_file.replace(self._key_file(session), api_key.encode())

    def forget(self, session: SessionRecord) -> None:
        """A session is gone; the store of a Qdrant server is closed with its last one."""
        self._key_file(session).unlink(missing_ok=True)
        with self._lock:
            name = self._of_sessions.pop(session.uid, None)
            is_used = name is None or session.config.qdrant is None or name in self._of_sessions.values()
            store = None if is_used or name is None else self._stores.pop(name, None)
        if store is not None:
            store.close()

    def close(self) -> None:
        """Close all stores."""
        with self._lock:
            stores, self._stores, self._of_sessions = self._stores, {}, {}
        for store in stores.values():
            store.close()

    def _opened(self, session: SessionRecord, name: str) -> VectorStore:
        config = session.config
        sparse = None if config.sparse is None else config.sparse.identity
        if config.qdrant is None:
            folder = self._folder / "collections" / name
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._parts.open_embedded(folder, config.identity, config.dimension, {}, sparse)
        return self._parts.open_remote(
            url=config.qdrant.url,
            api_key=self._key(session),
            prefer_grpc=config.qdrant.prefer_grpc,
            collection=config.qdrant.collection,
            identity=config.identity,
            dimension=config.dimension,
            schema={},
            sparse=sparse,
        )

    def _name(self, session: SessionRecord) -> str:
        """The name of the store with a session's points, a valid name of a folder."""
        config = session.config
        parts: list[str | int] = [config.identity, config.dimension]
        if config.sparse is not None:
            parts.append(config.sparse.identity)
        if config.qdrant is not None:  # by key too: another owner's session does not come in without it
            parts += [config.qdrant.url, config.qdrant.collection, self._key(session) or ""]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

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
