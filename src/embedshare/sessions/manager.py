"""The sessions of one session server: created, found, used, and destroyed with all that they hold.

They are in memory, and each change is in the database first. `recovery` ends at the start what was cut off.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

import msgspec
from loguru import logger

from embedshare.database.tables import now
from embedshare.errors import DatabaseUnavailable, InvalidInput, SessionExists, UnknownSession
from embedshare.sessions import metadata, quotas
from embedshare.sessions.collections import Collections, checked_qdrant
from embedshare.sessions.embedding import Models, checked_chunking
from embedshare.sessions.quotas import DayTokens
from embedshare.sessions.records import Config, SessionRecord, SessionRecords, SparseModel, Usage
from embedshare.sessions.uploads import Uploads
from embedshare.settings.sessions import SessionSettings

#: Seconds between two looks for sessions whose time is over, at most.
SWEEP_S = 15.0
#: A session's id, as callers write it into addresses.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")


class Wanted(NamedTuple):
    """A session that a caller asks for; None is the default."""

    name: str = ""
    model: str = ""
    chunk_size: int | None = None
    chunk_overlap: int | None = None
    schema: Mapping[str, str] = {}
    qdrant_url: str = ""
    qdrant_collection: str = ""
    qdrant_key: str = ""
    qdrant_grpc: bool = False
    sparse_model: str | None = None
    """The model of its sparse vectors, "" being the default one; None for a session without them."""


class Session:
    """A session of this process. `lock` excludes changes of what it holds."""

    def __init__(self, record: SessionRecord, usage: Usage) -> None:
        self.record = record
        self.usage = usage
        self.searches = 0
        """Since the session server's start."""

        self.used_at = record.used_at
        self.is_touched = False
        """Whether `used_at` is not stored yet."""

        self.is_ending = record.is_ending
        self.lock = threading.Lock()

    @property
    def config(self) -> Config:
        """What it was created with."""
        return self.record.config


class SessionManager:
    """The sessions in `records`; thread-safe. Every method raises DatabaseUnavailable."""

    def __init__(
        self, records: SessionRecords, collections: Collections, models: Models, limits: SessionSettings,
        uploads: Uploads, tokens: DayTokens,
    ) -> None:  # fmt: skip
        self.uploads = uploads
        self.tokens = tokens
        self.collections = collections
        self.records = records
        self._models = models
        self._limits = limits
        self._lock = threading.Lock()
        self._sessions: dict[tuple[str, str], Session] = {}
        for record in records.sessions():
            self._sessions[record.owner, record.name] = Session(record, records.usage(record.uid))

    def create(self, owner: str, wanted: Wanted) -> Session:
        """A new session, pinned to the model as it is now.

        Raises InvalidInput, SessionExists, QuotaExceeded, UnknownModel, NotServed for a model without the
        vectors that it is named for, ModelMismatch and the errors of reaching the model server. Nothing is
        made then.
        """
        name = wanted.name or uuid.uuid4().hex
        if not _ID.fullmatch(name):
            raise InvalidInput(
                "session_id must have 1 to 128 letters, digits and . _ ~ -, and begin with a letter or digit"
            )
        self._check_free(owner, name)
        model = self._models.giving("dense", wanted.model)
        frame = self._models.frame(model, wanted.model)
        sparse = self._sparse(wanted.sparse_model)
        size, overlap = checked_chunking(model, wanted.chunk_size, wanted.chunk_overlap, frame)
        config = Config(
            wanted.model, model.identity, model.dimension, size, overlap,
            metadata.checked_schema(wanted.schema),
            checked_qdrant(
                wanted.qdrant_url, wanted.qdrant_collection, wanted.qdrant_grpc, self._limits.qdrant_urls
            ),
            sparse,
        )  # fmt: skip
        made = Session(SessionRecord(owner, name, config), Usage())
        self.collections.keep_key(made.record, wanted.qdrant_key)
        try:
            self.collections.of(made.record)  # a Qdrant server that cannot be used is told of now
            with self._lock:
                self._check_free_alone(owner, name)
                self.records.add(made.record)
                self._sessions[owner, name] = made
        except BaseException:
            self.collections.forget(made.record)
            raise
        logger.info("Created session {} (model {}, chunks of {})", made.record.uid, model.model_name, size)
        return made

    def get(self, owner: str, name: str) -> Session:
        """The owner's session of this name, which is in use by this. Raises UnknownSession."""
        found = self._sessions.get((owner, name))
        if found is None or found.is_ending or self._is_over(found):
            raise UnknownSession(
                f"there is no session {name[:128]!r}: create it, or list those that there are"
            )
        found.used_at = now()
        found.is_touched = True
        return found

    def of(self, owner: str) -> list[Session]:
        """The owner's sessions, the oldest first."""
        found = [one for (of, _), one in self._items() if of == owner]
        return [one for one in found if not one.is_ending and not self._is_over(one)]

    def update(self, session: Session, size: int | None, overlap: int | None) -> Session:
        """Change the chunking of an empty session.

        Raises SessionExists if it holds or loads a document, InvalidInput, ModelMismatch.
        """
        config = session.config
        model = self._models.checked(config.model, config.identity)
        frame = self._models.frame(model, config.model)
        size = config.chunk_size if size is None else size
        overlap = config.chunk_overlap if overlap is None else overlap
        size, overlap = checked_chunking(model, size, overlap, frame)
        with session.lock:
            if session.usage.documents or self.uploads.of(session.record.uid):
                raise SessionExists("the session holds documents, which keep its chunking: delete them first")
            changed = msgspec.structs.replace(config, chunk_size=size, chunk_overlap=overlap)
            self.records.configure(session.record.uid, changed)
            session.record = replace(session.record, config=changed)
        return session

    def destroy(self, session: Session) -> None:
        """Delete a session with all that it holds; its uploads fail.

        An interrupted or failed deletion is ended by the next sweep or start.
        """
        with session.lock:
            self.records.begin_end(session.record.uid)
            session.is_ending = True
        self._end(session)

    def expires_at(self, session: Session) -> float | None:
        """Seconds since 1970 after which the session is destroyed unless it is used; None is never."""
        if not self._limits.ttl_s:
            return None
        return (session.used_at + timedelta(seconds=self._limits.ttl_s)).timestamp()

    def sweep(self) -> None:
        """Destroy sessions whose time is over or whose deletion was cut off; store uses and tokens."""
        for _, session in self._items():
            if session.is_ending:
                self._end(session)
            elif self._is_over(session) and not self.uploads.of(session.record.uid):
                logger.info(
                    "Destroying session {} (not used for {:g} s)", session.record.uid, self._limits.ttl_s
                )
                self.destroy(session)
        self.save()

    def save(self) -> None:
        """Store when sessions were used, and the tokens of today."""
        touched = [session for _, session in self._items() if session.is_touched]
        for session in touched:
            session.is_touched = False
        if touched:
            try:
                self.records.touch([(one.record.uid, one.used_at) for one in touched])
            except DatabaseUnavailable:
                for session in touched:
                    session.is_touched = True
                raise
        self.tokens.write()

    def totals(self) -> tuple[int, int, int]:
        """Sessions, documents and chunks of all owners."""
        found = [session.usage for _, session in self._items()]
        return len(found), sum(one.documents for one in found), sum(one.chunks for one in found)

    def _sparse(self, name: str | None) -> SparseModel | None:
        return None if name is None else SparseModel(name, self._models.giving("sparse", name).identity)

    def _end(self, session: Session) -> None:
        record = session.record
        self.uploads.end(record.uid)
        with session.lock:
            if self._sessions.get((record.owner, record.name)) is not session:
                return  # another thread has ended it
            self.collections.of(record).drop_session(record.uid)
            self.records.remove(record.uid)
            with self._lock:
                del self._sessions[record.owner, record.name]
        self.collections.forget(record)
        logger.info("Destroyed session {}", record.uid)

    def _check_free(self, owner: str, name: str) -> None:
        with self._lock:
            self._check_free_alone(owner, name)

    def _check_free_alone(self, owner: str, name: str) -> None:
        if (owner, name) in self._sessions:
            raise SessionExists(f"a session {name!r} exists already: destroy it first, or choose another id")
        quotas.check_sessions(sum(of == owner for of, _ in self._sessions), self._limits)

    def _is_over(self, session: Session) -> bool:
        at = self.expires_at(session)
        return at is not None and at < time.time()

    def _items(self) -> list[tuple[tuple[str, str], Session]]:
        with self._lock:
            return list(self._sessions.items())

    def each(self, do: Callable[[Session], None]) -> None:
        """Do something with every session, those whose deletion has begun too."""
        for _, session in self._items():
            do(session)
