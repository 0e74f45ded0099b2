"""The settings in each kind of database, changed by several processes and operators."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import OperationalError

from embedshare.database.database import QUIET_S, Database
from embedshare.database.tables import Base, Setting
from embedshare.errors import DatabaseUnavailable
from embedshare.settings import OperationSettings, Settings
from embedshare.settings_store import runtime_settings
from embedshare.settings_store.changes import SettingsChanges
from embedshare.settings_store.current import CurrentSettings
from embedshare.settings_store.repository import SettingsRepository
from embedshare.settings_store.sync import SettingsSync
from tests.processes import wait_for
from tests.proxy import End, Proxy, Stall, cut

#: The URLs and users of the real databases.
SERVERS = {
    "mariadb": "mysql+pymysql://root@127.0.0.1:3306/",
    "postgresql": "postgresql+psycopg://127.0.0.1:5432/postgres",
}


@contextlib.contextmanager
def own_database(kind: str) -> Iterator[str]:
    """The URL of a database that this run drops at its end; skip if there is no such server."""
    name = f"embedshare_{secrets.token_hex(6)}"
    engine = create_engine(SERVERS[kind], isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError as error:
        pytest.skip(f"no {kind} to be reached at {SERVERS[kind]}: {str(error.orig).splitlines()[0]}")
    try:
        yield engine.url.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name}" + " WITH (FORCE)" * (kind == "postgresql")))
        engine.dispose()


@pytest.fixture(scope="module", params=["sqlite", *SERVERS])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'settings.db'}"
        return
    with own_database(request.param) as made:
        yield made


@pytest.fixture
def stores(url: str) -> Iterator[list[SettingsRepository]]:
    """Two processes' stores of one database, with no setting in it."""
    databases = [
        Database.open(Settings(operation=OperationSettings(db_url=url)), Path("/nowhere")) for _ in range(2)
    ]
    with contextlib.ExitStack() as stack:
        for database in databases:
            stack.enter_context(closing(database))
        with databases[0].write() as session:
            for table in ("settings", "settings_audit", "models"):
                session.execute(text(f"DELETE FROM {table}"))
        yield [SettingsRepository(database) for database in databases]


def test_the_migrations_make_the_tables_as_they_are_mapped(stores: list[SettingsRepository]) -> None:
    with stores[0].database.read() as session:
        found = inspect(session.connection())
        for table in Base.metadata.tables.values():
            columns = {each["name"]: each["nullable"] for each in found.get_columns(table.name)}
            assert columns == {column.name: column.nullable for column in table.columns}


def test_what_one_keeps_the_other_reads_with_a_version_that_has_grown(
    stores: list[SettingsRepository],
) -> None:
    one, other = stores
    before = other.read()
    values = {"model_name": "größe/模型", "port": 8001, "normalize_embeddings": True, "cors_origins": ["*"]}
    one.change(values, "a key's name")
    found = other.read()
    assert found.values == values
    assert found.version == before.version + 1
    other.change({"port": runtime_settings.DELETED, "cors_origins": []}, "10.0.0.1")
    assert one.read().values == {"model_name": "größe/模型", "normalize_embeddings": True, "cors_origins": []}
    latest = [(row.key, row.old, row.new, row.action, row.changed_by) for row in one.audit(2)]
    assert sorted(latest) == [
        ("cors_origins", ["*"], [], "set", "10.0.0.1"),
        ("port", 8001, None, "delete", "10.0.0.1"),
    ]


def test_a_change_of_several_is_kept_whole_or_not_at_all(stores: list[SettingsRepository]) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        stores[0].change({"port": 8001, "model_name": object()}, "one")
    assert stores[1].read().values == {}
    assert stores[1].audit(10) == []


def test_what_failed_is_rolled_back_only_where_it_still_stands(stores: list[SettingsRepository]) -> None:
    one, other = stores
    one.change({"model_name": "first", "port": 1}, "one")
    one.change({"model_name": "bad"}, "one")
    other.roll_back({"model_name": "bad"}, {"model_name": "first"}, "model server", "it does not load")
    assert one.read().values == {"model_name": "first", "port": 1}
    assert (one.audit(1)[0].action, one.audit(1)[0].reason) == ("rolled back", "it does not load")
    one.change({"model_name": "good"}, "one")
    other.roll_back({"model_name": "bad"}, {"model_name": "first"}, "model server", "it does not load")
    assert one.read().values["model_name"] == "good"
    other.roll_back({"port": 1}, {}, "model server", "taken")
    assert "port" not in one.read().values


def test_models_keep_their_order_their_names_cases_and_the_author_of_each(
    stores: list[SettingsRepository],
) -> None:
    one, other = stores
    bge, other_bge = (
        {"id": "BGE", "name": "größe/模型", "preload": True},
        {"id": "bge", "aliases": ["a", "A"]},
    )
    one.change_models([bge, other_bge], "first")
    found = other.read()
    assert found.models == (bge, other_bge)
    other.change_models([{"id": "new"}, bge], "second")
    assert one.read().models == ({"id": "new"}, bge)
    assert one.read().version == found.version + 1
    with one.database.read() as session:
        rows = session.execute(text("SELECT id, updated_by FROM models ORDER BY position")).all()
    assert [tuple(row) for row in rows] == [("new", "second"), ("BGE", "first")]
    latest = {(line.key, line.action, line.changed_by): (line.old, line.new) for line in one.audit(2)}
    assert latest == {
        ("models/bge", "delete", "second"): ({"aliases": ["a", "A"]}, None),
        ("models/new", "set", "second"): (None, {}),
    }


def test_models_are_rolled_back_only_while_nothing_else_has_changed(stores: list[SettingsRepository]) -> None:
    one, other = stores
    one.change_models([{"id": "bad"}], "one")
    version = one.read().version
    one.change({"max_batch_size": 8}, "one")
    other.change_models([], "model server", "it does not load", version)
    assert one.read().models == ({"id": "bad"},)
    other.change_models([], "model server", "it does not load", one.read().version)
    assert one.read().models == ()
    line = one.audit(1)[0]
    assert (line.key, line.action, line.reason) == ("models/bad", "rolled back", "it does not load")


def test_the_longest_id_of_a_model_fits_the_audit(stores: list[SettingsRepository]) -> None:
    spec_id = "模" * 240
    stores[0].change_models([{"id": spec_id}], "one")
    assert stores[1].audit(1)[0].key == f"models/{spec_id}"


def test_writers_at_once_lose_no_change_and_no_line_of_the_audit(stores: list[SettingsRepository]) -> None:
    before = stores[0].read().version
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: stores[n % 2].change({"max_batch_size": n}, f"writer {n}"), range(1, 13)))
    assert stores[0].read().version == before + 12
    lines = stores[0].audit(20)[::-1]
    assert sorted(line.new for line in lines) == list(range(1, 13))
    assert [line.old for line in lines] == [None, *(line.new for line in lines[:-1])]
    assert stores[1].read().values["max_batch_size"] == lines[-1].new


def test_rows_that_an_operator_writes_are_read_as_the_environment_is(
    stores: list[SettingsRepository],
) -> None:
    rows = {
        "port": "8001",
        "normalize_embeddings": "yes",
        "device": "cuda",
        "model_name": '"a b"',
        "other": "1",
    }
    with stores[0].database.write() as session:
        for key, raw in {**rows, "max_batch_size": "many"}.items():
            session.add(Setting(key=key, raw=raw, updated_by="operator"))
    found = stores[1].read()
    assert found.values == {"port": 8001, "normalize_embeddings": True, "device": "cuda", "model_name": "a b"}
    assert found.invalid["max_batch_size"][0] == "many"
    assert set(found.invalid) == {"max_batch_size"}  # unknown keys are ignored


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        pytest.param("mariadb", Stall, marks=pytest.mark.long),
        ("postgresql", Stall),
        ("mariadb", End),
        ("postgresql", End),
    ],
)
def test_while_the_database_is_away_what_was_known_holds_and_it_comes_back_by_itself(
    kind: str, fault: type[Exception], tmp_path: Path
) -> None:
    with own_database(kind) as direct:
        port = {"mariadb": 3306, "postgresql": 5432}[kind]
        proxy = Proxy(port)
        try:
            away(direct.replace(str(port), str(proxy.port)), proxy, fault, tmp_path)
        finally:
            proxy.close()


def away(url: str, proxy: Proxy, fault: type[Exception], folder: Path) -> None:
    settings = Settings(operation=OperationSettings(db_url=url, use_db_settings=True))

    def worker() -> tuple[SettingsChanges, SettingsSync]:
        kept = SettingsSync(CurrentSettings(settings), folder)
        kept.watcher.start()
        return SettingsChanges(kept.live, kept, lambda wanted, version: None), kept

    changes, kept = worker()
    changes.change({"normalize_embeddings": True}, "me")
    assert (changes.live.normalize, changes.database_status) == (True, "connected")

    proxy.on_request, proxy.persists = cut(0, fault), True  # from the first bytes of a connection
    wait_for(lambda: changes.database_status == "disconnected", 10, "the end of the database")
    assert changes.live.normalize is True
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="does not answer"):
            changes.change({"normalize_embeddings": False}, "me")
        assert time.monotonic() - began < 8
    later, kept_later = worker()  # a new process uses the last known values
    assert later.live.normalize is True
    assert later.database_status == "disconnected"

    proxy.heal()
    wait_for(lambda: changes.database_status == later.database_status == "connected", 20, "the database")
    time.sleep(QUIET_S)
    later.change({"normalize_embeddings": False}, "me")
    wait_for(lambda: not changes.live.normalize, 10, "the change")
    for each in (kept, kept_later):
        each.watcher.stop()
        each.database.close()


def test_a_change_that_cannot_be_kept_is_taken_back_where_it_was_applied(tmp_path: Path) -> None:
    kept = SettingsSync(
        CurrentSettings(Settings(operation=OperationSettings(use_db_settings=True))), tmp_path
    )
    applied: list[str] = []

    def apply(wanted: Settings, version: int) -> None:
        applied.append(wanted.model.name)
        if wanted.model.name == "new":
            with kept.database.write() as session:
                session.execute(text("ALTER TABLE settings_audit RENAME TO gone"))

    changes = SettingsChanges(kept.live, kept, apply)
    with pytest.raises(DatabaseUnavailable, match="settings_audit"):
        changes.change({"model_name": "new"}, "me")
    assert applied == ["new", Settings().model.name]
    assert changes.live.settings.model.name == Settings().model.name
    time.sleep(QUIET_S)
    assert kept.store.read().values == {}
    kept.database.close()
