"""The tables of sessions, in each kind of database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import update

from embedshare.database.database import Database
from embedshare.database.tables import SessionRow
from embedshare.sessions.records import (
    LOADING,
    PUBLISHING,
    READY,
    REMOVING,
    Config,
    DocumentRecord,
    Qdrant,
    SessionRecord,
    SessionRecords,
    SparseModel,
    Usage,
    document_id,
)
from embedshare.settings import OperationSettings, Settings
from tests.settings_store.test_repository import SERVERS, own_database

CONFIG = Config("bge", "ab" * 32, 384, 512, 50, {"year": "integer"}, Qdrant("http://q:6333", "c", True))
WITH_SPARSE = msgspec.structs.replace(CONFIG, sparse=SparseModel("splade", "cd" * 32))
FILENAME = "Überblick 📄.txt"


@pytest.fixture(params=["sqlite", *SERVERS])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        with closing(opened(f"sqlite:///{tmp_path / 'sessions.db'}")) as found:
            yield found
        return
    with own_database(request.param) as url, closing(opened(url)) as found:
        yield found


def opened(url: str) -> Database:
    return Database.open(Settings(operation=OperationSettings(db_url=url)), Path("/nowhere"))


def test_a_session_of_an_earlier_release_has_no_sparse_model(database: Database) -> None:
    """Its row has no such field."""
    stored = msgspec.to_builtins(WITH_SPARSE)
    assert stored.pop("sparse") == {"model": "splade", "identity": "cd" * 32}
    record = SessionRecord("", "old", WITH_SPARSE)
    records = SessionRecords(database, "here")
    records.add(record)
    assert records.sessions() == [record]
    with database.write() as session:
        session.execute(update(SessionRow).where(SessionRow.uid == record.uid).values(config=stored))
    assert records.sessions() == [replace(record, config=CONFIG)]


def test_a_session_is_read_as_it_was_written(database: Database) -> None:
    records, others = SessionRecords(database, "here"), SessionRecords(database, "elsewhere")
    one, two = SessionRecord("key 1", "One", CONFIG), SessionRecord("", "one", replaced(CONFIG))
    for record in (one, two):
        records.add(record)
    assert records.sessions() == [one, two]
    assert others.sessions() == []  # another server's, of the same database
    later = one.used_at + timedelta(seconds=5)
    records.touch([(one.uid, later)])
    records.configure(two.uid, CONFIG)
    records.begin_end(two.uid)
    assert records.sessions() == [
        replace(one, used_at=later), replace(two, config=CONFIG, is_ending=True)
    ]  # fmt: skip
    records.remove(one.uid)
    assert [found.uid for found in records.sessions()] == [two.uid]


def replaced(config: Config) -> Config:
    return Config(config.model, config.identity, config.dimension, 64, 0, {}, None)


def test_a_version_takes_the_place_of_the_one_before_when_it_is_published(database: Database) -> None:
    records = SessionRecords(database, "here")
    document = document_id(FILENAME)
    first = DocumentRecord("s" * 32, document, FILENAME, "text/plain", {"year": 2020, "of": "ä"})
    second = DocumentRecord("s" * 32, document, FILENAME, "text/plain", {})
    other = DocumentRecord("s" * 32, document_id("b.txt"), "b.txt", "", {})
    for record, chunks in ((first, 3), (other, 5), (second, 4)):
        records.add_document(record)
        assert [one.version for one in records.documents("s" * 32, LOADING)] == [record.version]
        loaded = replace(record, chunks=chunks, size=1 << 40, tokens=7)
        records.loaded(loaded)
        assert records.documents("s" * 32, PUBLISHING) == [replace(loaded, state=PUBLISHING)]
        records.published(loaded)
        records.published(loaded)  # as after a crash
        assert records.document("s" * 32, record.document) == replace(loaded, state=READY)
    assert records.usage("s" * 32) == Usage(2, 9, 2 << 40, 14)
    assert records.usage("s" * 32, besides=document) == Usage(1, 5, 1 << 40, 7)
    records.begin_removal(other.version)
    assert [one.version for one in records.documents("s" * 32, REMOVING)] == [other.version]
    records.remove_document(other.version)
    assert records.usage("s" * 32).documents == 1
    assert records.document("s" * 32, other.document) is None


def test_tokens_are_of_an_owner_a_day_and_a_place(database: Database) -> None:
    records, others = SessionRecords(database, "here"), SessionRecords(database, "elsewhere")
    records.set_tokens("key 1", 20_000, 1 << 40)
    records.set_tokens("key 1", 20_001, 5)
    assert records.tokens("key 1", 20_001) == 5
    assert records.tokens("key 1", 20_000) == 0  # forgotten with the day
    assert records.tokens("key 2", 20_001) == others.tokens("key 1", 20_001) == 0
