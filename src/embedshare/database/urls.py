"""Turns EMBEDDING_DB_URL into the address that SQLAlchemy connects to."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from embedshare.errors import InvalidSetting
from embedshare.settings import Settings

#: The database's file if EMBEDDING_DB_URL names none.
FILE_NAME = "embedshare.db"
#: A kind of database, and the driver used here, whatever driver the URL names.
_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}


def database_url(settings: Settings, folder: Path) -> URL:
    """The database's address: EMBEDDING_DB_URL, else a SQLite file in `folder`.

    Other drivers' names, such as asyncio ones, mean the driver used here. Raises InvalidSetting, which never
    quotes the URL: it holds a password.
    """
    if settings.operation.db_url is None:
        return URL.create("sqlite+pysqlite", database=str(folder / FILE_NAME))
    try:
        url = make_url(settings.operation.db_url)
    except (ArgumentError, ValueError):
        raise _refusal("a URL as postgresql://user:password@host/database") from None
    driver = _DRIVERS.get(url.drivername.partition("+")[0])
    if driver is None:
        raise _refusal(f"a URL that begins with {', '.join(f'{kind}://' for kind in _DRIVERS)}")
    if driver.startswith("sqlite") and url.database in (None, "", ":memory:"):
        raise _refusal("for SQLite, the path of a file, as sqlite:///embedshare.db: processes share it")
    if not driver.startswith("sqlite") and not url.database:
        raise _refusal("a URL that names the database, as postgresql://user:password@host/database")
    return url.set(drivername=driver)


def _refusal(allowed: str) -> InvalidSetting:
    message = f"EMBEDDING_DB_URL is (hidden); allowed: {allowed}"
    return InvalidSetting(message, name="EMBEDDING_DB_URL", value="(hidden)", allowed=allowed)
