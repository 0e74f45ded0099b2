"""The database: its URLs, its tables, and what a process sees of one that is away."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from embedshare import platforms
from embedshare.database.database import Database
from embedshare.database.tables import ApiKey, SettingsVersion
from embedshare.database.urls import database_url
from embedshare.errors import DatabaseUnavailable, InvalidSetting
from embedshare.settings import Settings


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("mysql+aiomysql://u:p@h:3307/d?ssl=1", "mysql+pymysql://u:p@h:3307/d?ssl=1"),
        ("mariadb://u@h/d", "mariadb+pymysql://u@h/d"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgres://h/d", "postgresql+psycopg://h/d"),
        ("sqlite+aiosqlite:///a/b.db", "sqlite+pysqlite:///a/b.db"),
    ],
)
def test_a_url_for_any_driver_is_one_for_ours(given: str, used: str) -> None:
    url = database_url(Settings(db_url=given), Path("/nowhere"))
    assert url.render_as_string(hide_password=False) == used


def test_without_a_url_it_is_a_file_in_the_folder(tmp_path: Path) -> None:
    assert database_url(Settings(), tmp_path).database == str(tmp_path / "embedshare.db")


@pytest.mark.parametrize(
    "given",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://u:hunter2@h",
        "postgresql://u:hunter2@h:port/d",
        "oracle://h/d",
    ],
)
def test_a_url_that_cannot_work_is_refused_and_not_quoted(given: str) -> None:
    with pytest.raises(InvalidSetting, match="EMBEDDING_DB_URL") as caught:
        database_url(Settings(db_url=given), Path("/nowhere"))
    assert "hunter2" not in str(caught.value)


def test_its_file_is_its_owners_alone(tmp_path: Path) -> None:
    database = Database.open(Settings(), tmp_path / "made")
    with database.write() as session:
        session.add(ApiKey(name="one", key_hash="h", scopes=[]))
        session.flush()
        files = sorted((tmp_path / "made").iterdir())
        assert [path.name for path in files] == ["embedshare.db", "embedshare.db-shm", "embedshare.db-wal"]
        assert all(platforms.fault_of_secret(path.stat()) is None for path in files)
    database.close()


def test_a_transaction_that_fails_keeps_nothing(tmp_path: Path) -> None:
    database = Database.open(Settings(), tmp_path)

    def fail() -> None:
        with database.write() as session:
            session.add(ApiKey(name="one", key_hash="h", scopes=["embed"]))
            session.flush()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with database.read() as session:
        assert session.query(ApiKey).all() == []
    database.close()


def test_a_database_of_a_later_version_is_used_as_it_is(tmp_path: Path) -> None:
    first = Database.open(Settings(), tmp_path)
    with first.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    first.close()
    second = Database.open(Settings(), tmp_path)
    with second.read() as session:
        assert session.get(SettingsVersion, 1) is not None
    second.close()


def test_one_that_is_away_is_said_within_its_time_and_then_at_once() -> None:
    with platforms.exclusive_listener("127.0.0.1", 0, 1) as silent:  # takes connections and says nothing
        port = silent.getsockname()[1]
        database = Database.open(Settings(db_url=f"mysql://u:hunter2@127.0.0.1:{port}/d"), Path("/nowhere"))
        assert database.status == "disconnected"
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="does not answer") as caught, database.read():
            pass
        assert time.monotonic() - began < 10
        again = time.monotonic()
        with pytest.raises(DatabaseUnavailable), database.read():
            pass
        assert time.monotonic() - again < 0.5
        assert "hunter2" not in str(caught.value)
        assert database.status == "disconnected"


def test_processes_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from embedshare.database.database import Database\n"
        "from embedshare.settings import Settings\n"
        "with Database.open(Settings(), pathlib.Path(sys.argv[1])).read() as session: print('read')\n"
    )
    source = str(Path(__file__).parents[2] / "src")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r})\n{program}", str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["read\n"] * 4
