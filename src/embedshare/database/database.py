"""One process's connections to the database: its sessions, and whether it answers."""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from loguru import logger
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from embedshare import platforms, private_file
from embedshare.backoff import Backoff, retry
from embedshare.breaker import Breaker, Limits
from embedshare.database.upgrade import upgrade
from embedshare.database.urls import database_url
from embedshare.errors import DatabaseUnavailable, MissingDependency
from embedshare.private_file import Exposed
from embedshare.settings import Settings

#: Seconds to connect and for one answer, at most: a request must not wait long for a database that is down.
TIMEOUT_S = 2
#: Seconds after a failure until one call retries: each try may take TIMEOUT_S of a request's thread.
QUIET_S = 1.0
#: Any failure counts: the last known values serve meanwhile, and a database that is back is used at once.
_LIMITS = Limits(Backoff(QUIET_S, QUIET_S), failure_share=0.0)
#: Seconds between two tries to set SQLite's log while others do.
_LOCKED = Backoff(0.01, 0.01)
#: Connections of a process: the kept ones, and further ones on demand.
_POOL = {"pool_size": 5, "max_overflow": 10, "pool_timeout": TIMEOUT_S, "pool_recycle": 1800}

Status = Literal["connected", "disconnected"]


class Database:
    """Connects and migrates at first use; thread-safe and fork-safe."""

    def __init__(self, url: URL) -> None:
        """Raises MissingDependency if the driver is not installed."""
        self._url = url
        self._engine = _engine(url)
        self._migrated = False
        self._migrating = threading.Lock()
        self._breaker = Breaker(_LIMITS)
        self._failure = ""
        platforms.after_fork_in_child(self._reset_after_fork)

    @classmethod
    def open(cls, settings: Settings, folder: Path) -> Database:
        """The database that EMBEDDING_DB_URL names, else a SQLite file in `folder`. Nothing connects yet.

        Raises InvalidSetting, MissingDependency.
        """
        return cls(database_url(settings, folder))

    @property
    def shown(self) -> str:
        """Its address, without the password."""
        return self._url.render_as_string(hide_password=True)

    @property
    def status(self) -> Status:
        """Its state when it was last asked."""
        return "connected" if self._migrated and self._breaker.is_closed else "disconnected"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session to read with.

        Raises DatabaseUnavailable if the database does not answer; at once if it did not a second ago.
        """
        with self._answering():
            self._migrate()
            with Session(self._engine, expire_on_commit=False) as session:
                yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session to read and write with, in one transaction.

        Raises DatabaseUnavailable as `read` does; IntegrityError passes through.
        """
        with self._answering():
            self._migrate()
            writing = self._engine.execution_options(writes=True)
            with Session(writing, expire_on_commit=False) as session, session.begin():
                yield session

    def check(self) -> str:
        """Connect and change nothing; the database's address in words. Raises DatabaseUnavailable."""
        if self._url.drivername.startswith("sqlite") and not Path(self._url.database or "").exists():
            return f"none yet; it is made at the first start: {self.shown}"
        with self._answering(), self._engine.connect():
            return f"answers: {self.shown}"

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _reset_after_fork(self) -> None:
        """The child opens connections of its own, with a new lock; the parent's stay the parent's."""
        self._migrating = threading.Lock()
        self._engine.dispose(close=False)

    def _migrate(self) -> None:
        if self._migrated:
            return
        with self._migrating:
            if not self._migrated:
                if self._url.drivername.startswith("sqlite"):
                    _make_file(Path(self._url.database or ""))
                    _tell_exposure(Path(self._url.database or "").resolve())
                with self._engine.execution_options(writes=True).begin() as connection:
                    upgrade(connection)
                self._migrated = True

    @contextmanager
    def _answering(self) -> Iterator[None]:
        attempt = self._breaker.admit()
        if attempt is None:
            raise DatabaseUnavailable(self._failure)
        with attempt:
            try:
                yield
            except IntegrityError:
                raise
            except (DBAPIError, PoolTimeoutError, OSError) as error:
                refused = isinstance(error, Exposed)
                says = "is not used" if refused else "does not answer"
                self._failure = f"the database {says} ({self.shown}): {self._reason(error)}"
                if attempt.failed():
                    logger.error("{}", self._failure)
                raise DatabaseUnavailable(self._failure) from None
            if attempt.succeeded():
                logger.info("Reached the database again ({})", self.shown)

    def _reason(self, error: Exception) -> str:
        cause = error.orig if isinstance(error, DBAPIError) else error
        text = str(cause.strerror if isinstance(cause, Exposed) else cause)
        lines = text.strip().splitlines()
        reason = lines[0] if lines else type(cause).__name__
        password = self._url.password
        return reason.replace(str(password), "***") if password else reason


def _engine(url: URL) -> Engine:
    arguments: dict[str, Any] = {"connect_timeout": TIMEOUT_S}
    pool: dict[str, Any] = dict(_POOL)
    if url.drivername.startswith("sqlite"):
        arguments = {"timeout": TIMEOUT_S}
    elif not url.drivername.startswith("postgresql"):
        # As on the others: a session sees later commits, not only those before its first read.
        pool["isolation_level"] = "READ COMMITTED"
        arguments |= {"read_timeout": TIMEOUT_S, "write_timeout": TIMEOUT_S, "charset": "utf8mb4"}
    try:
        engine = create_engine(url, connect_args=arguments, pool_pre_ping=True, **pool)
    except ImportError as error:
        raise MissingDependency(
            f"EMBEDDING_DB_URL needs a package that is not installed ({error.name}): pip install "
            "'embedshare[database]'"
        ) from None
    if engine.dialect.name == "sqlite":
        file = Path(url.database or "").resolve()
        event.listen(engine, "do_connect", lambda *_: _check_files(file))
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    elif engine.dialect.name == "postgresql":
        event.listen(engine, "do_connect", _connect_postgresql)
    return engine


def _connect_postgresql(_: object, record: object, given: tuple[Any], options: dict[str, Any]) -> Any:
    from embedshare.database.postgresql import TimedConnection

    return TimedConnection.connect(*given, **options)


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin below, not where sqlite3 guesses that they should
    connection.execute(f"PRAGMA busy_timeout={TIMEOUT_S * 1000}")
    _set_write_ahead_log(connection)
    connection.execute("PRAGMA synchronous=NORMAL")


def _set_write_ahead_log(connection: Any) -> None:
    """Retry for TIMEOUT_S: its busy timeout does not cover two connections that turn a new file to WAL."""
    retry(
        lambda: connection.execute("PRAGMA journal_mode=WAL"),
        lambda error: isinstance(error, sqlite3.OperationalError) and "locked" in str(error),
        _LOCKED,
        time.monotonic() + TIMEOUT_S,
    )


def _begin_sqlite(connection: Connection) -> None:
    """Writers take the write lock at the beginning: SQLite refuses a reader that becomes a writer if another
    has written meanwhile."""
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_file(path: Path) -> None:
    """Create the file for this user alone, before SQLite creates it for all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        private_file.create(path)


def _check_files(path: Path) -> None:
    """Raise Exposed if others can write to the database or own it: their rows would be API keys or settings.
    SQLite adopts its journals, so they count as the database."""
    for file in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))):
        try:
            fault = platforms.fault_of_trust(file.lstat())
        except FileNotFoundError:
            continue
        if fault is not None:
            reason = f"others can write to {file} or own it ({fault}); chown it to this user and chmod 600 it"
            raise Exposed(errno.EPERM, reason)


def _tell_exposure(path: Path) -> None:
    """Warn of faults that do not forbid the use of the database."""
    if platforms.WINDOWS:
        return
    if path.stat().st_mode & 0o004:
        logger.warning("Using {}, which every user of this machine can read; chmod 600 it", path)
    if platforms.fault_of_trust(path.parent.stat()) is not None:
        logger.warning(
            "Using the database in {}, where others can write and replace it; move it to a folder of "
            "this user's",
            path.parent,
        )
