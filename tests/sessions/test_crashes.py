"""The session server killed at any moment: a document is whole or absent, and nothing is left behind."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from embedshare.errors import EmbedshareError
from embedshare.grpc.client import SessionClient
from tests.processes import LONG, ModelServer
from tests.session_parts import FileStore
from tests.session_server import SessionServer, session_server

KILLS = 200 if LONG else 12
OLD, NEW = [b"the old version\n"] * 3, [b"the new version\n"] * 600


def replace_file(client: SessionClient, done: list[str]) -> None:
    with contextlib.suppress(EmbedshareError):
        client.process_file("one", "a.txt", None, NEW)
        done.append("stored")


@pytest.mark.timeout(1800)
def test_a_killed_upload_leaves_all_or_nothing(server: ModelServer, tmp_path: Path) -> None:
    chosen, outcomes = random.Random(11), {"old": 0, "new": 0}
    with session_server(server, tmp_path) as running:
        client = running.client()
        client.create_session("one")
        for _ in range(KILLS):
            client.process_file("one", "a.txt", None, OLD)
            done: list[str] = []
            uploading = threading.Thread(target=replace_file, args=(client, done))
            uploading.start()
            time.sleep(chosen.uniform(0.02, 0.5))  # any moment of it
            running.kill()
            uploading.join(30)
            running.start()
            chunks = client.get_session("one")["chunks"]
            found = {one["text"] for one in client.search("one", "a version", top_k=1000)}
            assert (chunks, found) in ((3, {"the old version"}), (600, {"the new version"}))
            assert chunks == 600 or not done  # what was acknowledged is there
            outcomes["new" if chunks == 600 else "old"] += 1
            assert left(running) == chunks
    print(f"killed {KILLS} times: {outcomes}")  # what one runs it for


def left(running: SessionServer) -> int:
    """Points in the store, visible or not."""
    with sqlite3.connect(running.folder / "sessions.db") as database:
        uids = [uid for (uid,) in database.execute("SELECT uid FROM sessions")]
    folders = list((running.folder / "sessions" / "collections").iterdir())
    return sum(FileStore(folder).points_left(uid) for folder in folders for uid in uids)


def test_a_deletion_that_was_cut_off_is_ended_by_the_next_start(server: ModelServer, tmp_path: Path) -> None:
    with session_server(server, tmp_path) as running:
        client = running.client()
        for name in ("one", "two"):
            client.create_session(name)
            client.process_file(name, "a.txt", None, OLD)
        running.kill()
        with sqlite3.connect(tmp_path / "sessions.db") as database:  # as the deletion's first step leaves it
            database.execute("UPDATE sessions SET is_ending = 1 WHERE name = 'one'")
        database.close()
        running.start()
        assert [one["session_id"] for one in client.list_sessions()] == ["two"]
        assert left(running) == 3
        assert client.create_session("one")["documents"] == 0


def test_what_was_published_before_a_crash_is_published_by_the_next_start(
    server: ModelServer, tmp_path: Path
) -> None:
    with session_server(server, tmp_path) as running:
        client = running.client()
        client.create_session("one")
        client.process_file("one", "a.txt", None, OLD)
        running.kill()
        with sqlite3.connect(tmp_path / "sessions.db") as database:  # killed before the last step
            database.execute("UPDATE session_documents SET state = 'publishing'")
        database.close()
        running.start()
        assert len(client.search("one", "a version")) == 3
        assert [one["state"] for one in client.documents("one")] == ["ready"]
