"""Sessions and documents in the database, where they outlive the process."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import delete, func, select, update

from embedshare.database.database import Database
from embedshare.database.tables import SessionDocument, SessionRow, SessionTokens, now

LOADING, PUBLISHING, READY, REMOVING = "loading", "publishing", "ready", "removing"
#: Names by which a document's id is made of its file's name.
_DOCUMENTS = uuid.UUID("6a0c1c6e-59f8-5d6f-9f0e-0d3b3a2f6a11")


class Qdrant(msgspec.Struct, frozen=True):
    """A Qdrant server's collection. Its API key is in a file, not here."""

    url: str
    collection: str
    prefer_grpc: bool = False


class SparseModel(msgspec.Struct, frozen=True):
    """The model of a session's sparse vectors; `model` is the name that its creator gave."""

    model: str
    identity: str


class Config(msgspec.Struct, frozen=True):
    """What a session was created with; `model` is the name that its creator gave."""

    model: str
    identity: str
    """The vector space, which never changes."""

    dimension: int
    chunk_size: int
    chunk_overlap: int
    schema: dict[str, str]
    """Type of each declared field of metadata."""

    qdrant: Qdrant | None = None
    sparse: SparseModel | None = None


@dataclass(frozen=True)
class SessionRecord:
    """A session. `uid` is its name in the vector store, `name` the one that its owner uses."""

    owner: str
    name: str
    config: Config
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    created_at: datetime = field(default_factory=now)
    used_at: datetime = field(default_factory=now)
    is_ending: bool = False


@dataclass(frozen=True)
class DocumentRecord:
    """A version of a document; `document` stays the same when its file is sent again."""

    session: str
    document: str
    filename: str
    content_type: str
    attributes: dict[str, Any]
    state: str = LOADING
    chunks: int = 0
    size: int = 0
    tokens: int = 0
    version: str = field(default_factory=lambda: uuid.uuid4().hex)
    created_at: datetime = field(default_factory=now)


class Usage(NamedTuple):
    """What a session's documents take."""

    documents: int = 0
    chunks: int = 0
    size: int = 0
    tokens: int = 0


def document_id(filename: str) -> str:
    """The id of a session's document of this file name, 32 hexadecimal digits."""
    return uuid.uuid5(_DOCUMENTS, filename).hex


class SessionRecords:
    """The tables of sessions of the folder `place`. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database, place: str) -> None:
        self._database = database
        self._place = place

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def sessions(self) -> list[SessionRecord]:
        """All sessions of this place, those whose deletion has begun too, the oldest first."""
        with self._database.read() as session:
            rows = session.scalars(
                select(SessionRow).where(SessionRow.place == self._place).order_by(SessionRow.created_at)
            ).all()
        return [_session(row) for row in rows]

    def add(self, record: SessionRecord) -> None:
        """Store a new session."""
        row = SessionRow(
            uid=record.uid, place=self._place, owner=record.owner, name=record.name,
            config=msgspec.to_builtins(record.config),
            created_at=record.created_at, used_at=record.used_at, is_ending=False,
        )  # fmt: skip
        with self._database.write() as session:
            session.add(row)

    def configure(self, uid: str, config: Config) -> None:
        """Store another configuration of a session."""
        self._update(uid, config=msgspec.to_builtins(config))

    def touch(self, used: Sequence[tuple[str, datetime]]) -> None:
        """Store when sessions were used last."""
        with self._database.write() as session:
            for uid, at in used:
                session.execute(update(SessionRow).where(SessionRow.uid == uid).values(used_at=at))

    def begin_end(self, uid: str) -> None:
        """A session's deletion begins."""
        self._update(uid, is_ending=True)

    def remove(self, uid: str) -> None:
        """Delete a session and its documents."""
        with self._database.write() as session:
            session.execute(delete(SessionDocument).where(SessionDocument.session == uid))
            session.execute(delete(SessionRow).where(SessionRow.uid == uid))

    def _update(self, uid: str, **values: Any) -> None:
        with self._database.write() as session:
            session.execute(update(SessionRow).where(SessionRow.uid == uid).values(**values))

    def documents(self, uid: str, *states: str) -> list[DocumentRecord]:
        """A session's documents in these states, the oldest first."""
        query = select(SessionDocument).where(
            SessionDocument.session == uid, SessionDocument.state.in_(states)
        )
        with self._database.read() as session:
            rows = session.scalars(query.order_by(SessionDocument.created_at)).all()
        return [_document(row) for row in rows]

    def document(self, uid: str, document: str) -> DocumentRecord | None:
        """The document as searches see it; None if there is none."""
        query = select(SessionDocument).where(
            SessionDocument.session == uid,
            SessionDocument.document == document,
            SessionDocument.state == READY,
        )
        with self._database.read() as session:
            row = session.scalars(query).first()
        return None if row is None else _document(row)

    def usage(self, uid: str, besides: str = "") -> Usage:
        """What a session's documents take, but for the document `besides`."""
        table = SessionDocument
        sums = [func.coalesce(func.sum(one), 0) for one in (table.chunks, table.size, table.tokens)]
        query = select(func.count(), *sums).where(
            table.session == uid, table.state == READY, table.document != besides
        )
        with self._database.read() as session:
            return Usage(*map(int, session.execute(query).one()))

    def add_document(self, record: DocumentRecord) -> None:
        """A version of a document is about to be loaded."""
        row = SessionDocument(
            version=record.version, session=record.session, document=record.document, state=record.state,
            filename=record.filename, content_type=record.content_type,
            chunks=record.chunks, size=record.size, tokens=record.tokens,
            attributes=record.attributes, created_at=record.created_at,
        )  # fmt: skip
        with self._database.write() as session:
            session.add(row)

    def loaded(self, record: DocumentRecord) -> None:
        """All chunks of a version are stored, and it is about to be published: from here on a crash cannot
        undo it."""
        with self._database.write() as session:
            session.execute(
                update(SessionDocument)
                .where(SessionDocument.version == record.version)
                .values(
                    state=PUBLISHING, chunks=record.chunks, size=record.size, tokens=record.tokens,
                    content_type=record.content_type,
                )
            )  # fmt: skip

    def published(self, record: DocumentRecord) -> None:
        """A version is visible, in place of an earlier one."""
        with self._database.write() as session:
            session.execute(
                delete(SessionDocument).where(
                    SessionDocument.session == record.session,
                    SessionDocument.document == record.document,
                    SessionDocument.state == READY,
                    SessionDocument.version != record.version,
                )
            )
            session.execute(
                update(SessionDocument).where(SessionDocument.version == record.version).values(state=READY)
            )

    def begin_removal(self, version: str) -> None:
        """A document's deletion begins."""
        with self._database.write() as session:
            session.execute(
                update(SessionDocument).where(SessionDocument.version == version).values(state=REMOVING)
            )

    def remove_document(self, version: str) -> None:
        """Delete a version of a document."""
        with self._database.write() as session:
            session.execute(delete(SessionDocument).where(SessionDocument.version == version))

    def tokens(self, owner: str, day: int) -> int:
        """Tokens that an owner's sessions read on a day."""
        with self._database.read() as session:
            row = session.get(SessionTokens, (self._key(owner), day))
            return 0 if row is None else row.tokens

    def set_tokens(self, owner: str, day: int, tokens: int) -> None:
        """Store the tokens of a day, and forget those of earlier days."""
        key = self._key(owner)
        with self._database.write() as session:
            session.execute(delete(SessionTokens).where(SessionTokens.owner == key))
            session.add(SessionTokens(owner=key, day=day, tokens=tokens))

    def _key(self, owner: str) -> bytes:
        return hashlib.blake2b(f"{self._place} {owner}".encode(), digest_size=16).digest()


def _session(row: SessionRow) -> SessionRecord:
    config = msgspec.convert(row.config, Config)
    return SessionRecord(row.owner, row.name, config, row.uid, row.created_at, row.used_at, row.is_ending)


def _document(row: SessionDocument) -> DocumentRecord:
    return DocumentRecord(
        row.session, row.document, row.filename, row.content_type, row.attributes,
        row.state, row.chunks, row.size, row.tokens, row.version, row.created_at,
    )  # fmt: skip
