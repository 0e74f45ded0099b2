"""Uploads: all of a file or nothing, whoever leaves in the middle."""

from __future__ import annotations

import hashlib
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedshare.errors import (
    DeadlineExceeded,
    DocumentUnreadable,
    InvalidInput,
    Overloaded,
    QuotaExceeded,
    TooLarge,
    UnknownSession,
    UploadIncomplete,
)
from embedshare.grpc import fastembed_pb2 as pb
from embedshare.grpc import faults
from embedshare.grpc.client import SessionClient
from embedshare.grpc.fastembed_pb2_grpc import FastEmbedServiceStub
from embedshare.sessions.records import document_id
from tests.processes import LONG, ModelServer, wait_for
from tests.session_parts import FileStore
from tests.session_server import SessionServer, session_server

CANCELS = 200 if LONG else 40
LINES = [f"line {number} of a file, of which every line is a chunk\n".encode() for number in range(400)]


@pytest.fixture
def stub(running: SessionServer) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        yield FastEmbedServiceStub(channel)


def messages(session: str, pieces: Iterator[bytes] | list[bytes], size: int = 0, **end: Any) -> Iterator[Any]:
    """An upload's messages; with `end` the last one too."""
    described = pb.FileMetadata(filename="a.txt", size=size)
    yield pb.ProcessFileStreamRequest(session_id=session, metadata=described)
    for piece in pieces:
        yield pb.ProcessFileStreamRequest(chunk=piece)
    if end:
        yield pb.ProcessFileStreamRequest(end=pb.UploadEnd(**end))


def uid_of(running: SessionServer, session: str) -> str:
    with sqlite3.connect(running.folder / "sessions.db") as database:
        [(uid,)] = database.execute("SELECT uid FROM sessions WHERE name = ?", (session,)).fetchall()
    return str(uid)


def rows_of(running: SessionServer, uid: str) -> int:
    with sqlite3.connect(running.folder / "sessions.db") as database:
        [(count,)] = database.execute(
            "SELECT count(*) FROM session_documents WHERE session = ?", (uid,)
        ).fetchall()
    return int(count)


def points_of(running: SessionServer, uid: str) -> int:
    """Points in the store, visible or not."""
    folders = Path(running.folder / "sessions" / "collections").iterdir()
    return sum(FileStore(folder).points_left(uid) for folder in folders)


def test_a_cancelled_upload_leaves_nothing(
    running: SessionServer, stub: Any, session: str, client: SessionClient
) -> None:
    chosen = random.Random(7)
    uid = uid_of(running, session)
    codes = set()
    for _ in range(CANCELS):
        told = threading.Event()
        call = stub.ProcessFileStream.future(messages(session, slowly(LINES, told)))
        told.wait(10)
        time.sleep(chosen.uniform(0, 0.05))  # any moment of the upload
        call.cancel()
        codes.add(call.code())
        wait_for(lambda: client.status()["uploads"] == 0, 30, "the end of the upload")
    assert codes == {grpc.StatusCode.CANCELLED}
    assert client.get_session(session)["documents"] == 0
    assert client.search(session, "a line") == []
    assert (rows_of(running, uid), points_of(running, uid)) == (0, 0)
    [failed] = client.documents(session)
    assert failed["state"] == "failed"
    assert client.process_file(session, "a.txt", None, LINES)["points_stored"] == len(LINES)


def slowly(lines: list[bytes], told: threading.Event) -> Iterator[bytes]:
    for number, line in enumerate(lines):
        yield line
        if number == 20:
            told.set()
        if number % 10 == 0:
            time.sleep(0.002)


def test_the_end_of_a_stream_is_no_end_of_an_upload(
    running: SessionServer, stub: Any, session: str, client: SessionClient
) -> None:
    data = b"".join(LINES)
    right = {"chunks": len(LINES), "bytes": len(data), "sha256": hashlib.sha256(data).digest()}
    wrong: list[tuple[int, dict[str, Any]]] = [
        (0, {}),
        (len(data) + 1, {}),
        (len(data) - 1, {}),
        (len(data) + 1, right),
        (0, {**right, "chunks": len(LINES) + 1}),
        (0, {**right, "bytes": len(data) - 1}),
        (0, {**right, "sha256": hashlib.sha256(data[1:]).digest()}),
        (0, {**right, "sha256": b""}),
    ]
    for size, end in wrong:
        with pytest.raises(grpc.RpcError) as caught:
            stub.ProcessFileStream(messages(session, LINES, size, **end))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert isinstance(faults.error_of(caught.value), UploadIncomplete)
    assert client.search(session, "a line") == []
    assert points_of(running, uid_of(running, session)) == 0
    assert stub.ProcessFileStream(messages(session, LINES, 0, **right)).success


def test_a_failed_upload_leaves_the_version_before(stub: Any, session: str, client: SessionClient) -> None:
    client.process_file(session, "a.txt", None, [b"the first version\n"])
    with pytest.raises(grpc.RpcError):
        stub.ProcessFileStream(messages(session, LINES))
    assert [one["text"] for one in client.search(session, "a line")] == ["the first version"]
    told = client.document(session, document_id("a.txt"))
    assert (told["state"], "UploadEnd" in told["error"]) == ("failed", True)


def test_what_the_uploader_itself_raises_is_raised(session: str, client: SessionClient) -> None:
    def broken() -> Iterator[bytes]:
        yield LINES[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        client.process_file(session, "a.txt", None, broken())
    wait_for(lambda: client.status()["uploads"] == 0, 30, "the end of the upload")
    assert client.search(session, "a line") == []


def test_a_deadline_in_mid_upload_is_a_time_out(session: str, client: SessionClient) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield LINES[0]
            time.sleep(0.01)

    for _ in range(10):
        with pytest.raises(DeadlineExceeded):
            client.process_file(session, "a.txt", None, endless(), timeout=0.2)
        wait_for(lambda: client.status()["uploads"] == 0, 30, "the end of the upload")
    assert client.search(session, "a line") == []


def test_progress_is_told_while_the_rest_comes(session: str, client: SessionClient) -> None:
    go_on, told = threading.Event(), []

    def waiting() -> Iterator[bytes]:
        yield from LINES
        go_on.wait(30)
        yield LINES[0]

    def upload() -> None:
        told.append(client.process_file(session, "a.txt", None, waiting(), {"year": 2020}))

    thread = threading.Thread(target=upload)
    thread.start()
    try:
        name = document_id("a.txt")
        # embedded and stored, while the file's end is not sent yet
        wait_for(lambda: stored(client, session, name) >= 128, 30, "the first chunks")
        document = client.document(session, name)
        assert (document["state"], document["size"], document["error"]) == ("ingesting", None, None)
        assert 0 < document["bytes"] <= sum(map(len, LINES))
        assert client.search(session, "a line") == []
        with pytest.raises(Overloaded, match=r"another upload of 'a\.txt'"):
            client.process_file(session, "a.txt", None, [LINES[0]])
    finally:
        go_on.set()
        thread.join(30)
    assert told[0]["points_stored"] == len(LINES) + 1
    assert client.document(session, name)["state"] == "ready"


def stored(client: SessionClient, session: str, document: str) -> int:
    try:
        return int(client.document(session, document)["stored"])
    except UnknownSession:
        return 0


def test_a_session_that_is_destroyed_ends_its_uploads(
    running: SessionServer, session: str, client: SessionClient
) -> None:
    uid, caught = uid_of(running, session), []
    begun = threading.Event()

    def waiting() -> Iterator[bytes]:
        yield from LINES
        begun.set()
        time.sleep(5)
        yield LINES[0]

    def upload() -> None:
        try:
            client.process_file(session, "a.txt", None, waiting())
        except UnknownSession as error:
            caught.append(error.message)

    thread = threading.Thread(target=upload)
    thread.start()
    begun.wait(10)
    wait_for(lambda: client.status()["uploads"] > 0, 10, "the upload")
    client.destroy_session(session)
    thread.join(30)
    assert caught == ["the session was destroyed meanwhile"]
    assert (rows_of(running, uid), points_of(running, uid)) == (0, 0)


@pytest.mark.parametrize(
    ("name", "chunks", "error"),
    [("a.exe", [b"x"], DocumentUnreadable), ("a.txt", [b""], DocumentUnreadable), ("", [b"x"], InvalidInput)],
)
def test_a_file_that_cannot_be_read_says_why(
    session: str, client: SessionClient, name: str, chunks: list[bytes], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        client.process_file(session, name, None, chunks)
    if isinstance(caught.value, DocumentUnreadable):
        assert caught.value.fields["reason"] in ("unsupported", "empty")
    assert client.get_session(session)["documents"] == 0


def tokens_until_refused(client: SessionClient) -> int:
    """The tokens of a session whose file is sent again and again, until the day's are read."""
    read = sum(one["tokens"] for one in client.list_sessions())
    for _ in range(9):
        try:
            client.process_file("two", "a.txt", None, LINES)
        except QuotaExceeded as error:
            return read if error.fields["quota"] == "tokens" else 0
        read += client.get_session("two")["tokens"]
    raise AssertionError("nothing was refused")


def test_quotas_hold_and_nothing_is_stored_beyond_them(server: ModelServer, tmp_path: Path) -> None:
    limits = {
        "EMBEDDING_MAX_SESSIONS": "2", "EMBEDDING_SESSION_MAX_DOCUMENTS": "2",
        "EMBEDDING_SESSION_MAX_CHUNKS": "500", "EMBEDDING_SESSION_MAX_FILE_BYTES": "100000",
        "EMBEDDING_SESSION_TOKENS_A_DAY": "20000",
    }  # fmt: skip
    with session_server(server, tmp_path, **limits) as running:
        client = running.client("key 1")
        client.create_session("one")
        client.create_session("two")
        with pytest.raises(QuotaExceeded, match="EMBEDDING_MAX_SESSIONS allows 2"):
            client.create_session("three")
        client.process_file("one", "a.txt", None, LINES)
        with pytest.raises(QuotaExceeded, match="chunks") as caught:
            client.process_file("one", "b.txt", None, LINES)
        assert caught.value.fields == {"quota": "chunks", "limit": 500}
        with pytest.raises(TooLarge, match="EMBEDDING_SESSION_MAX_FILE_BYTES"):
            client.process_file("one", "b.txt", None, [b"x" * 100_001])
        client.process_file("one", "b.txt", None, LINES[:5])
        with pytest.raises(QuotaExceeded, match="documents"):
            client.process_file("one", "c.txt", None, LINES[:5])
        client.process_file("one", "b.txt", None, LINES[:9])  # it replaces the one before
        assert [one["documents"] for one in client.list_sessions()] == [2, 0]
        assert 15_000 < tokens_until_refused(client) < 30_000  # the last upload's are counted too
        other = running.client("key 2")
        other.create_session("one")
        other.process_file("one", "a.txt", None, LINES[:3])
        assert running.stop() == 0
        running.start()
        with pytest.raises(QuotaExceeded, match="retry tomorrow"):  # it is stored
            client.search("one", "a line")
        assert len(other.search("one", "a line")) == 3
