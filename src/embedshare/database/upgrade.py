"""Migrates a database's tables to this version, in one process at a time."""

from __future__ import annotations

import io
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

_SCRIPTS = Path(__file__).parent / "migrations"
#: Name of the lock that one process holds while it migrates.
_LOCK = "embedshare migrations"
_LOCK_NUMBER = 0x656D6265
#: Seconds that another process may take to migrate.
_WAIT_S = 30


def upgrade(connection: Connection) -> None:
    """Run the missing migrations within `connection`'s transaction.

    A database that a later version has migrated is left as it is: migrations only add to tables.
    """
    configured = Config(stdout=io.StringIO())
    configured.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(configured)
    if _is_of(connection, scripts):
        return
    _lock(connection)
    try:
        if not _is_of(connection, scripts):
            configured.attributes["connection"] = connection
            command.upgrade(configured, "head")
    finally:
        if connection.dialect.name in ("mysql", "mariadb"):  # elsewhere the transaction's end releases it
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": _lock_name(connection)})


def _is_of(connection: Connection, scripts: ScriptDirectory) -> bool:
    """Whether the tables are of this version, or of a later one, whose revision is unknown here."""
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None or found == scripts.get_current_head():
        return found is not None
    return found not in {script.revision for script in scripts.walk_revisions()}


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
    elif connection.dialect.name in ("mysql", "mariadb"):
        locking = text("SELECT GET_LOCK(:name, :wait_s)")
        connection.execute(locking, {"name": _lock_name(connection), "wait_s": _WAIT_S})
    # SQLite: the transaction holds the single write lock from its beginning


def _lock_name(connection: Connection) -> str:
    """MySQL's locks belong to the whole server: one name for each of its databases, of 64 characters at
    most."""
    return f"{_LOCK} {connection.engine.url.database}"[:64]
