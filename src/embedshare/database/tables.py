"""The tables, as SQLAlchemy maps them. A change here needs a migration (`migrations/versions`)."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import BigInteger, DateTime, Index, LargeBinary, MetaData, String, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

#: The character set and engine of tables in MySQL and MariaDB.
MYSQL_OPTIONS = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}
#: 16 bytes that can be a key, and bytes of a vector: MySQL's BLOB is no key, and holds 64 KiB.
DIGEST = LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
VECTOR = LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


class UtcTime(TypeDecorator[datetime]):
    """A time with its zone; the database stores it in UTC, to the microsecond, without one."""

    impl = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=timezone.utc)


class JsonText(TypeDecorator[Any]):
    """Any JSON value, stored as its text; no value at all is NULL.

    Not the databases' own JSON types: they sort keys, change numbers, or are missing.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


def now() -> datetime:
    """The time in the form of the tables."""
    return datetime.now(timezone.utc)


class Base(DeclarativeBase):
    """The columns that tables share."""

    metadata = MetaData()
    __table_args__: Any = MYSQL_OPTIONS


class Setting(Base):
    """A setting that overrides the environment's."""

    __tablename__ = "settings"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    raw: Mapped[str] = mapped_column("value", Text)
    """JSON; the bare text is accepted too, since operators may write into this table."""

    updated_at: Mapped[datetime] = mapped_column(UtcTime, default=now, onupdate=now)
    updated_by: Mapped[str] = mapped_column(String(255))


class ModelRow(Base):
    """A model that the server may load."""

    __tablename__ = "models"

    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(String(255))
    """The name that callers use. No key: databases compare such a name without case, callers do not."""

    fields: Mapped[str] = mapped_column(Text)
    """A JSON object with the fields of the file of models, but for the id."""

    updated_at: Mapped[datetime] = mapped_column(UtcTime, default=now)
    updated_by: Mapped[str] = mapped_column(String(255))


class SettingsVersion(Base):
    """One row: a number that grows with each change of the settings or models and so announces it."""

    __tablename__ = "settings_version"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int]


class SettingChange(Base):
    """The content, time and author of a change of a setting or model; rows are only ever added."""

    __tablename__ = "settings_audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    changed_at: Mapped[datetime] = mapped_column(UtcTime, default=now)
    changed_by: Mapped[str] = mapped_column(String(255))
    key: Mapped[str] = mapped_column(String(255))
    """The setting's key, or `models/` and a model's id."""

    old: Mapped[Any | None] = mapped_column(JsonText)
    new: Mapped[Any | None] = mapped_column(JsonText)
    action: Mapped[str] = mapped_column(String(16))
    """set, delete or rolled back."""

    reason: Mapped[str | None] = mapped_column(Text)


class ApiKey(Base):
    """A key for the HTTP routes; only its hash is stored."""

    __tablename__ = "api_keys"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    key_hash: Mapped[str] = mapped_column(String(128), unique=True)
    scopes: Mapped[list[str]] = mapped_column(JsonText, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now)
    expires_at: Mapped[datetime | None] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcTime)
    models: Mapped[list[str] | None] = mapped_column(JsonText)
    """Ids or aliases of the only models that it may use; NULL is every model."""


class CachedVector(Base):
    """The vector of a text, under a digest of all that it depends on. Times are Unix microseconds."""

    __tablename__ = "cached_vectors"
    __table_args__ = (Index("cached_vectors_by_age", "written_at", "size"), MYSQL_OPTIONS)

    space: Mapped[bytes] = mapped_column(DIGEST, primary_key=True)
    """The digest of the model, its runtime and its precision."""

    key: Mapped[bytes] = mapped_column(DIGEST, primary_key=True)
    value: Mapped[bytes] = mapped_column(VECTOR)
    size: Mapped[int]
    """Bytes that the row takes."""

    written_at: Mapped[int] = mapped_column(BigInteger)
    ends_at: Mapped[int | None] = mapped_column(BigInteger, index=True)


class SessionRow(Base):
    """A session of the sessions service."""

    __tablename__ = "sessions"
    __table_args__ = (Index("sessions_by_place", "place"), MYSQL_OPTIONS)

    uid: Mapped[str] = mapped_column(String(32), primary_key=True)
    """Its name in the vector store, 32 hexadecimal digits."""

    place: Mapped[str] = mapped_column(String(32))
    """The session server's folder that has its vectors: several may share a database."""

    owner: Mapped[str] = mapped_column(String(255))
    name: Mapped[str] = mapped_column(String(255))
    """Its id for callers. No key: databases compare it without case, callers do not."""

    config: Mapped[Any] = mapped_column(JsonText, nullable=False)
    """The fields of `sessions.records.Config`; a change of theirs needs no migration."""

    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now)
    used_at: Mapped[datetime] = mapped_column(UtcTime, default=now)
    is_ending: Mapped[bool] = mapped_column(default=False)
    """Whether its deletion has begun."""


class SessionDocument(Base):
    """A version of a session's document."""

    __tablename__ = "session_documents"
    __table_args__ = (Index("session_documents_by_session", "session", "document"), MYSQL_OPTIONS)

    version: Mapped[str] = mapped_column(String(32), primary_key=True)
    session: Mapped[str] = mapped_column(String(32))
    document: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    """loading, publishing, ready or removing."""

    filename: Mapped[str] = mapped_column(Text)
    content_type: Mapped[str] = mapped_column(String(255))
    chunks: Mapped[int] = mapped_column(BigInteger, default=0)
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    attributes: Mapped[Any] = mapped_column(JsonText, nullable=False)
    """The metadata that its uploader gave."""

    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now)


class SessionTokens(Base):
    """Tokens that an owner's sessions read on a day."""

    __tablename__ = "session_tokens"

    owner: Mapped[bytes] = mapped_column(DIGEST, primary_key=True)
    """A digest of the folder and the owner."""

    day: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Days since 1970, in UTC."""

    tokens: Mapped[int] = mapped_column(BigInteger)
