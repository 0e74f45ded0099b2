"""API keys in each kind of database, and those from before a migration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect, text

from embedshare.access.keys import digest
from embedshare.database import upgrade
from embedshare.database.api_keys import Keys
from embedshare.database.database import Database
from embedshare.database.tables import now
from embedshare.errors import InvalidInput
from embedshare.settings import OperationSettings, Settings
from tests.settings_store.test_repository import SERVERS, own_database


@pytest.fixture(params=["sqlite", *SERVERS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'keys.db'}"
        return
    with own_database(request.param) as made:
        yield made


def opened(url: str) -> Database:
    return Database.open(Settings(operation=OperationSettings(db_url=url)), Path("/nowhere"))


def test_a_key_s_models_are_kept_in_their_order_and_none_is_every_model(url: str) -> None:
    with closing(opened(url)) as database:
        keys = Keys(database)
        some, key = keys.create("some", ["embed"], models=["org/größe:latest", "minilm", "minilm"])
        _, other = keys.create("all", ["embed"])
        valid = keys.valid()
        assert valid[digest(key)].models == ("org/größe:latest", "minilm")
        assert valid[digest(other)].models is None
        assert [each.models for each in keys.all()] == [["org/größe:latest", "minilm"], None]
        assert keys.revoke("some").models == some.models
        with pytest.raises(InvalidInput, match="may use all"):
            keys.create("none", ["embed"], models=[])
        assert [each.name for each in keys.all()] == ["some", "all"]


def test_a_key_from_before_keys_had_models_may_use_all(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate_to = command.upgrade
    with closing(opened(url)) as database, monkeypatch.context() as patch:
        patch.setattr(upgrade.command, "upgrade", lambda config, _: migrate_to(config, "0004"))
        with database.write() as session:
            insert = "INSERT INTO api_keys (name, key_hash, scopes, created_at) VALUES (:n, :h, :s, :c)"
            values = {"n": "old", "h": digest("es_old"), "s": '["embed"]', "c": now().replace(tzinfo=None)}
            session.execute(text(insert), values)
            assert "models" not in columns(database)
    with closing(opened(url)) as database, monkeypatch.context() as patch:
        patch.setattr(upgrade.command, "upgrade", lambda config, _: migrate_to(config, "0005"))
        assert Keys(database).valid()[digest("es_old")].models is None
        assert "models" in columns(database)
        with database.write() as session:  # a migration that MySQL has cut off after the column
            session.execute(text("UPDATE alembic_version SET version_num = '0004'"))
    with closing(opened(url)) as database:
        _, key = Keys(database).create("new", ["embed"], models=["minilm"])
        assert Keys(database).valid()[digest(key)].models == ("minilm",)


def columns(database: Database) -> set[str]:
    with database.read() as session:
        return {each["name"] for each in inspect(session.connection()).get_columns("api_keys")}
