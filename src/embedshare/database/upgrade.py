"""Brings a database's tables to what this version needs, however many processes ask for it at once."""

from __future__ import annotations

import io
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

_SCRIPTS = Path(__file__).parent / "migrations"
#: Names the lock that one process holds while it migrates.
_LOCK = "embedshare migrations"
_LOCK_NUMBER = 0x656D6265
#: Seconds that another process may take to migrate.
_WAIT_S = 30


def upgrade(connection: Connection) -> None:
    """Run the migrations that are missing, within `connection`'s transaction.

    A database that a later version has migrated is left as it is: tables only ever gain.
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
        if connection.dialect.name in ("mysql", "mariadb"):  # elsewhere it goes with the transaction
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": _lock_name(connection)})


def _is_of(connection: Connection, scripts: ScriptDirectory) -> bool:
    """Whether the tables are those of this version, or of a later one, whose revision is unknown here."""
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
    # SQLite: the transaction is a writer's from its beginning, and there is one writer


def _lock_name(connection: Connection) -> str:
    """MySQL's locks are the whole server's: one for each database in it, of 64 characters at most."""
    return f"{_LOCK} {connection.engine.url.database}"[:64]
