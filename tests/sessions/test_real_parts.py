"""The session server as it is delivered: real readers, chunker and store."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from pathlib import Path

import pytest

from embedshare.errors import EmbedshareError
from embedshare.grpc.client import SessionClient
from tests.processes import LONG, ModelServer
from tests.session_server import REAL, session_server

KILLS = 200 if LONG else 8
MARKDOWN = b"# Cats\n\nThe cat sat on the mat.\n\n# Weather\n\nSnow falls in winter. Frost is cold.\n"
PAGE = b"<html><body><h1>Ships</h1><p>A ship sails the sea, and its crew sings.</p></body></html>"


def paragraphs(word: str, count: int) -> list[bytes]:
    return [f"The {word} version has many words, this is paragraph {n}.\n\n".encode() for n in range(count)]


def test_documents_of_several_kinds_are_found_by_their_places(server: ModelServer, tmp_path: Path) -> None:
    with session_server(server, tmp_path, REAL) as running:
        client = running.client()
        client.create_session("one", chunk_size=16, chunk_overlap=2, metadata_schema={"year": "integer"})
        stored = client.process_file("one", "notes.md", "text/markdown", [MARKDOWN], {"year": 2020})
        assert stored["points_stored"] >= 2
        client.process_file("one", "page.html", None, [PAGE])
        client.process_file("one", "plain.txt", None, paragraphs("old", 50), {"year": 1999})
        found = client.search("one", "snow in winter", top_k=3)
        assert "Snow falls" in found[0]["text"]
        assert found[0]["heading"] == "Weather"
        assert -1.0 <= found[-1]["score"] <= found[0]["score"] <= 1.0
        years = {one["metadata"]["year"] for one in client.search("one", "a", filters={"year": 1999})}
        assert years == {1999}
        assert running.stop() == 0
        running.start()
        again = client.search("one", "snow in winter", top_k=3)
        assert [one["id"] for one in again] == [one["id"] for one in found]
        client.destroy_session("one")
        assert client.create_session("one")["chunks"] == 0


def upload(client: SessionClient, done: list[str]) -> None:
    with contextlib.suppress(EmbedshareError):
        client.process_file("one", "a.txt", None, paragraphs("new", 800))
        done.append("stored")


@pytest.mark.timeout(1800)
def test_a_killed_upload_leaves_all_or_nothing_in_the_real_store(server: ModelServer, tmp_path: Path) -> None:
    chosen, outcomes = random.Random(5), {"old": 0, "new": 0}
    with session_server(server, tmp_path, REAL) as running:
        client = running.client()
        client.create_session("one", chunk_size=24, chunk_overlap=0)
        for _ in range(KILLS):
            old = client.process_file("one", "a.txt", None, paragraphs("old", 3))["points_stored"]
            done: list[str] = []
            uploading = threading.Thread(target=upload, args=(client, done))
            uploading.start()
            time.sleep(chosen.uniform(0.02, 0.7))  # any moment of it
            running.kill()
            uploading.join(30)
            running.start()
            chunks = client.get_session("one")["chunks"]
            found = client.search("one", "a version", top_k=1000)
            versions = {"old" if "old version" in one["text"] else "new" for one in found}
            assert versions == ({"old"} if chunks == old else {"new"})
            assert len(found) == min(chunks, 1000)
            assert chunks > old or not done  # what was acknowledged is there
            outcomes[versions.pop()] += 1
    print(f"killed {KILLS} times: {outcomes}")  # what one runs it for
