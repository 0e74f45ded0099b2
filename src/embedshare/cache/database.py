"""Cached vectors in the database of the settings, for several servers of one model and for the next start."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from sqlalchemy import ColumnElement, Table, delete, func, or_, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute, Session

from embedshare.cache.entry import Entry
from embedshare.cache.shared import Busy
from embedshare.database.database import Database
from embedshare.database.tables import CachedVector

#: Seconds that a call waits for the database, and further ones for each key; then it computes. Computing a
#: text takes longer than its further seconds.
PATIENCE_S, PATIENCE_FOR_A_KEY_S = 0.008, 0.000_03
#: Reads at once, each in a thread: a driver's own time-outs are whole seconds.
READERS = 4
#: Keys of one SELECT or DELETE, and rows of one INSERT: databases bound parameters and the size of a packet.
_KEYS, _ROWS = 500, 100
#: Rows that one transaction deletes: others wait for its locks.
_DELETED = 1000
#: Bytes that a row takes besides its value: its key, its marks and its places in indexes.
OVERHEAD_BYTES = 128
#: The share of the limit that is free after rows were dropped for it, and that is written between two looks.
_ROOM = 0.05


class DatabaseStore:
    """A table of `database`, of at most `limit_bytes`; see shared.Store. It must not be anyone else's: a
    failure of reads here would count there."""

    name = "database"
    title = "the database"

    def __init__(self, database: Database, limit_bytes: int) -> None:
        self._database = database
        self._limit_bytes = limit_bytes
        self._bytes = self._written = 0
        self._is_ready = False
        self._free = threading.Semaphore(READERS)
        self._reads: queue.SimpleQueue[tuple[bytes, Sequence[bytes], Future[list[bytes | None]]]]
        self._reads = queue.SimpleQueue()
        for number in range(READERS):
            threading.Thread(target=self._read_all, name=f"cache-reader-{number}", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether it answered once, so that its tables are of this version."""
        return self._is_ready

    def read(self, space: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        """See shared.Store. Raises TimeoutError after the patience, DatabaseUnavailable."""
        until = time.monotonic() + PATIENCE_S + PATIENCE_FOR_A_KEY_S * len(keys)
        if not self._free.acquire(timeout=PATIENCE_S):
            raise Busy
        found: Future[list[bytes | None]] = Future()
        self._reads.put((space, keys, found))
        return found.result(max(0.0, until - time.monotonic()))

    def write(self, entries: Sequence[Entry]) -> None:
        rows = _rows(entries)
        with self._database.write() as session:
            statement = _upsert(session.get_bind().dialect.name)
            for start in range(0, len(rows), _ROWS):
                session.execute(statement, rows[start : start + _ROWS])
        self._written += sum(row["size"] for row in rows)
        if self._written > self._limit_bytes * _ROOM:
            self._trim()

    def remove(self, space: bytes, keys: Sequence[bytes]) -> int:
        gone = 0
        with self._database.write() as session:
            for piece in _pieces(keys):
                gone += _deleted(session, CachedVector.space == space, CachedVector.key.in_(piece))
        return gone

    def clear(self, space: bytes | None) -> int:
        if space is not None:
            return self._delete(CachedVector.key, CachedVector.space == space)
        with self._database.read() as session:
            spaces = session.scalars(select(CachedVector.space).distinct()).all()
        return sum(self.clear(one) for one in spaces)

    def maintain(self) -> None:
        """Make or migrate the tables; drop expired rows, and the oldest beyond the limit."""
        with self._database.read():
            self._is_ready = True
        self._delete(CachedVector.ends_at, CachedVector.ends_at <= _microseconds())
        self._trim()

    def stats(self) -> dict[str, int]:
        """The bytes of all servers' rows when this one looked last, and the limit."""
        return {"bytes": self._bytes, "limit_bytes": self._limit_bytes}

    def _read_all(self) -> None:
        while True:
            space, keys, found = self._reads.get()
            try:
                found.set_result(self._selected(space, keys))
            except Exception as error:  # raised where the read is waited for
                found.set_exception(error)
            finally:
                self._free.release()

    def _selected(self, space: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        values: dict[bytes, bytes] = {}
        lives = or_(CachedVector.ends_at.is_(None), CachedVector.ends_at > _microseconds())
        columns = select(CachedVector.key, CachedVector.value).where(CachedVector.space == space, lives)
        with self._database.read() as session:
            for piece in _pieces(keys):
                values.update(
                    (row.key, row.value)
                    for row in session.execute(columns.where(CachedVector.key.in_(piece)))
                )
        return [values.get(key) for key in keys]

    def _trim(self) -> None:
        """Drop the oldest rows beyond the limit."""
        self._written = 0
        with self._database.read() as session:
            self._bytes = int(session.scalar(select(func.sum(CachedVector.size))) or 0)
        excess = self._bytes - self._limit_bytes
        if excess <= 0:
            return
        excess += int(self._limit_bytes * _ROOM)
        while excess > 0:
            with self._database.write() as session:
                last, size = _oldest(session, excess)
                if not _deleted(session, CachedVector.written_at <= last):
                    return  # another server was quicker
            excess -= size
            self._bytes -= size

    def _delete(self, order: InstrumentedAttribute[Any], *where: ColumnElement[bool]) -> int:
        """Delete rows in the order of an indexed column, some in each transaction; returns their number."""
        gone = 0
        last = select(order).where(*where).order_by(order).offset(_DELETED - 1).limit(1)
        while True:
            with self._database.write() as session:
                limit = session.scalar(last)
                gone += _deleted(session, *where, *([] if limit is None else [order <= limit]))
            if limit is None:
                return gone


def _rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Rows in the order of their keys, each once: servers that write the same ones do not lock each other."""
    now = _microseconds()
    by_key = {(one.space, one.key): one for one in entries}
    return [
        {
            "space": one.space, "key": one.key, "value": one.value,
            "size": len(one.value) + OVERHEAD_BYTES, "written_at": now + number,
            "ends_at": int(one.until * 1e6) or None,
        }
        for number, (_, one) in enumerate(sorted(by_key.items()))
    ]  # fmt: skip


def _upsert(dialect: str) -> Any:
    table = CachedVector.__table__
    assert isinstance(table, Table)
    names = ("value", "size", "written_at", "ends_at")
    if dialect in ("mysql", "mariadb"):
        inserted = mysql.insert(table)
        return inserted.on_duplicate_key_update({name: inserted.inserted[name] for name in names})
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    replacing = insert(table)
    return replacing.on_conflict_do_update(
        index_elements=["space", "key"], set_={name: replacing.excluded[name] for name in names}
    )


def _oldest(session: Session, excess: int) -> tuple[int, int]:
    """The time up to which the oldest rows take `excess` bytes, if so many go at once, and their bytes."""
    oldest = select(CachedVector.written_at, CachedVector.size).order_by(CachedVector.written_at)
    last, size = 0, 0
    for written_at, row_size in session.execute(oldest.limit(_DELETED)):
        last, size = written_at, size + row_size
        if size >= excess:
            break
    return last, size


def _deleted(session: Session, *where: ColumnElement[bool]) -> int:
    result: Any = session.execute(
        delete(CachedVector).where(*where), execution_options={"synchronize_session": False}
    )
    return int(result.rowcount)


def _pieces(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + _KEYS] for start in range(0, len(keys), _KEYS))


def _microseconds() -> int:
    return int(time.time() * 1e6)
