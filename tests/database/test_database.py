"""The database: its URLs, its tables, and what a process reads while it is unavailable."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from loguru import logger
from sqlalchemy import text

from embedshare import platforms, private_file
from embedshare.database.database import QUIET_S, TIMEOUT_S, Database
from embedshare.database.tables import ApiKey, SettingsVersion
from embedshare.database.urls import database_url
from embedshare.errors import DatabaseUnavailable, InvalidSetting
from embedshare.settings import OperationSettings, Settings
from tests.processes import wait_for

posix = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX's")


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
    url = database_url(Settings(operation=OperationSettings(db_url=given)), Path("/nowhere"))
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
        database_url(Settings(operation=OperationSettings(db_url=given)), Path("/nowhere"))
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


@posix
@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
@pytest.mark.parametrize("fault", ["mode", "owner"])
def test_a_file_that_others_can_write_or_own_is_not_believed(tmp_path: Path, suffix: str, fault: str) -> None:
    """Another user may have put an API key in such a file."""
    if fault == "owner" and os.getuid() != 0:
        pytest.skip("only root can give a file away")
    made = Database.open(Settings(), tmp_path)
    with made.write() as session:
        session.add(ApiKey(name="planted", key_hash="h", scopes=["admin"]))
    made.close()
    file = tmp_path / f"embedshare.db{suffix}"
    file.touch()
    if fault == "mode":
        file.chmod(0o666)
    else:
        os.chown(file, 65534, 65534)
    database = Database.open(Settings(), tmp_path)
    with pytest.raises(DatabaseUnavailable, match="is not used") as caught, database.read():
        pass
    assert str(file) in caught.value.message
    assert "chown it to this user and chmod 600 it" in caught.value.message
    file.chmod(0o600)
    os.chown(file, os.getuid(), os.getgid())
    wait_for(lambda: names_in(database) == ["planted"], 10, "the database's return")
    database.close()


def names_in(database: Database) -> list[str]:
    try:
        with database.read() as session:
            return [key.name for key in session.query(ApiKey)]
    except DatabaseUnavailable:
        return []


@posix
def test_a_file_that_others_can_read_and_a_folder_that_they_can_write_to_are_warned_of(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}")
    for file_mode, folder_mode in ((0o600, 0o700), (0o644, 0o777)):
        folder.chmod(folder_mode)
        (folder / "embedshare.db").touch()
        (folder / "embedshare.db").chmod(file_mode)
        database = Database.open(Settings(), folder)
        with database.read():
            pass
        database.close()
        if file_mode == 0o600:
            assert lines == []
    logger.remove(sink)
    readable, writable = lines
    assert readable.startswith("WARNING Using ")
    assert "every user of this machine can read" in readable
    assert writable.startswith("WARNING Using ")
    assert "others can write" in writable


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
    with platforms.exclusive_listener("127.0.0.1", 0, 1) as silent:  # accepts connections and never answers
        port = silent.getsockname()[1]
        database = Database.open(
            Settings(operation=OperationSettings(db_url=f"mysql://u:hunter2@127.0.0.1:{port}/d")),
            Path("/nowhere"),
        )
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

        def takes_s() -> float:
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailable), database.read():
                pass
            return time.monotonic() - began

        time.sleep(QUIET_S)
        with ThreadPoolExecutor(4) as threads:  # one thread checks for all whether the database is back
            times = sorted(each.result() for each in [threads.submit(takes_s) for _ in range(4)])
        assert times[2] < 0.5 * TIMEOUT_S < times[3]


def test_connections_that_turn_a_new_file_to_the_write_ahead_log_at_once_wait_for_one_another(
    tmp_path: Path,
) -> None:
    """Without a retry about one in a hundred is refused at once (SQLite 3.40)."""
    for turn in range(200):
        folder = tmp_path / str(turn)
        folder.mkdir()
        private_file.create(folder / "embedshare.db")
        databases = [Database.open(Settings(), folder) for _ in range(4)]
        together = threading.Barrier(4)

        def connect(database: Database, together: threading.Barrier = together) -> str:
            together.wait()
            return database.check()

        with ThreadPoolExecutor(4) as threads:
            assert all(said.startswith("answers: ") for said in threads.map(connect, databases))
        for database in databases:
            database.close()


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
