"""The session server as a process: its start, its end, who comes in, and what outlives it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedshare.database.api_keys import Keys
from embedshare.database.database import Database
from embedshare.errors import (
    Forbidden,
    RateLimited,
    SessionServerUnavailable,
    Unauthenticated,
    UnknownSession,
)
from embedshare.grpc import fastembed_pb2 as pb
from embedshare.grpc import faults
from embedshare.grpc.client import SessionClient
from embedshare.grpc.fastembed_pb2_grpc import FastEmbedServiceStub
from tests.processes import ModelServer, wait_for
from tests.session_server import SessionServer, session_server

LINES = [b"a line of a file\n", b"and another one\n"]


def test_health_says_not_serving_while_calls_are_finished(server: ModelServer, tmp_path: Path) -> None:
    go_on, answers = threading.Event(), []

    def waiting():  # type: ignore[no-untyped-def]
        yield LINES[0]
        go_on.wait(20)
        yield LINES[1]

    with session_server(server, tmp_path) as running:
        client = running.client()
        client.create_session("one")
        uploading = threading.Thread(
            target=lambda: answers.append(client.process_file("one", "a.txt", None, waiting()))
        )
        uploading.start()
        wait_for(lambda: client.status()["uploads"] == 1, 10, "the upload")
        with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == 1
            running.signal()
            wait_for(
                lambda: health.Check(health_pb2.HealthCheckRequest()).status == 2,
                5,
                "a health of NOT_SERVING",
            )
        with pytest.raises(SessionServerUnavailable, match="is stopping"):
            client.list_sessions()
        go_on.set()
        uploading.join(20)
        assert [one["points_stored"] for one in answers] == [2]
        assert running.process is not None
        assert running.process.wait(20) == 0


def test_health_answers_while_every_thread_is_busy(server: ModelServer, tmp_path: Path) -> None:
    go_on = threading.Event()

    def waiting():  # type: ignore[no-untyped-def]
        yield LINES[0]
        go_on.wait(30)

    def upload(client: SessionClient, number: int) -> None:
        client.process_file(f"s{number // 8}", f"{number}.txt", None, waiting())

    with session_server(server, tmp_path) as running:
        client = running.client()
        for number in range(4):
            client.create_session(f"s{number}")
        threads = [threading.Thread(target=upload, args=(client, number)) for number in range(32)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: client.status()["uploads"] == 32, 20, "the uploads")
            with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
                began = time.monotonic()
                asked = health_pb2.HealthCheckRequest()
                assert health_pb2_grpc.HealthStub(channel).Check(asked, timeout=2).status == 1
                assert time.monotonic() - began < 1.0
            assert len(client.get_embeddings("s0", ["a text"])) == 1
        finally:
            go_on.set()
            for thread in threads:
                thread.join(30)
        assert client.status()["documents"] == 32


def test_a_second_server_is_refused(server: ModelServer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with session_server(server, tmp_path) as running:
        same_port = SessionServer(server, tmp_path / "other", EMBEDDING_SESSIONS_PORT=str(running.port))
        same_folder = SessionServer(
            server, tmp_path / "other", EMBEDDING_SESSIONS_DIR=str(tmp_path / "sessions")
        )
        for second, says in ((same_port, "cannot listen"), (same_folder, "no other session server uses")):
            second.start(wait=False)
            assert second.process is not None
            assert second.process.wait(30) == 1
            assert says in second.said().decode().splitlines()[-1]
            assert b"Traceback" not in second.said()
        assert running.client().status()["sessions"] == 0


def test_sessions_outlive_a_restart(server: ModelServer, tmp_path: Path) -> None:
    with session_server(server, tmp_path) as running:
        client = running.client("key 3")
        made = client.create_session("one", chunk_size=100, metadata_schema={"year": "integer"})
        client.process_file("one", "a.txt", None, LINES, {"year": 5})
        assert running.stop() == 0
        running.start()
        found = client.get_session("one")
        same = ("identity", "chunk_size", "chunk_overlap", "metadata_schema", "created_at")
        assert [found[name] for name in same] == [made[name] for name in same]
        assert (found["documents"], found["chunks"]) == (1, 2)
        assert client.search("one", "a line")[0]["metadata"] == {"year": 5}
        with pytest.raises(UnknownSession):
            running.client().get_session("one")


def test_a_session_that_is_not_used_is_destroyed(server: ModelServer, tmp_path: Path) -> None:
    with session_server(server, tmp_path, EMBEDDING_SESSION_TTL_S="2") as running:
        client = running.client()
        client.create_session("left")
        client.process_file("left", "a.txt", None, LINES)
        client.create_session("used")
        end = time.monotonic() + 4
        while time.monotonic() < end:
            client.search("used", "a line")
            time.sleep(0.1)
        assert [one["session_id"] for one in client.list_sessions()] == ["used"]
        wait_for(lambda: b"Destroying session" in running.said(), 10, "the end of the session")
        assert client.create_session("left")["documents"] == 0


def test_api_keys_open_the_sessions_of_their_owners_alone(server: ModelServer, tmp_path: Path) -> None:
    keys = {"EMBEDDING_API_KEYS": "required"}
    database = Database.open(SessionServer(server, tmp_path).settings(), tmp_path)
    made = Keys(database)
    first, embed = made.create("first", ["embed"])
    _, other = made.create("other", ["embed"])
    _, metrics = made.create("metrics", ["metrics"])
    _, limited = made.create("limited", ["embed"], models=["some other model"])
    with session_server(server, tmp_path, **keys) as running:
        client = running.client(api_key=embed)
        client.create_session("one")
        client.process_file("one", "a.txt", None, LINES)
        assert len(client.search("one", "a line")) == 2
        with pytest.raises(UnknownSession):
            running.client(api_key=other).search("one", "a line")
        with pytest.raises(Forbidden, match="needs the scope embed"):
            running.client(api_key=metrics).list_sessions()
        with pytest.raises(Forbidden, match="may not use the default model"):
            running.client(api_key=limited).create_session("one")
        with pytest.raises(Unauthenticated, match="authorization: Bearer KEY"):
            running.client(api_key="es_wrong").list_sessions()
        # a web worker, which holds the model server's key, calls for the key's owner
        worker = running.client(f"key {first.id}")
        assert [one["session_id"] for one in worker.list_sessions()] == ["one"]
        with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            with pytest.raises(grpc.RpcError) as caught:
                FastEmbedServiceStub(channel).ListSessions(pb.ListSessionsRequest())
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == 1
    database.close()


def test_without_a_model_server_nothing_can_be_created(server: ModelServer, tmp_path: Path) -> None:
    with session_server(server, tmp_path, USE_IPC_EMBEDDING="true") as running:
        assert running.client().status()["sessions"] == 0
    off = SessionServer(server, tmp_path, USE_IPC_EMBEDDING="false").start(wait=False)
    assert off.process is not None
    assert off.process.wait(30) == 1
    assert "sessions embed by the model server alone" in off.said().decode().splitlines()[-1]


def test_a_small_limit_of_messages_takes_files_of_any_size(server: ModelServer, tmp_path: Path) -> None:
    with session_server(server, tmp_path, EMBEDDING_MAX_MESSAGE_BYTES="65536") as running:
        client = running.client()
        client.create_session("small")
        text = b"\n".join(b"line number %d of a file" % number for number in range(10_000))
        assert len(text) > 3 * 65536
        stored = client.process_file("small", "a.txt", "text/plain", iter([text]))
        assert stored["points_stored"] == client.get_session("small")["chunks"] > 1000
        assert stored["chunk_ids"] == []  # they would be larger than a message


def test_rates_hold_for_callers_and_not_for_workers(server: ModelServer, tmp_path: Path) -> None:
    with (
        session_server(server, tmp_path, EMBEDDING_RATE_LIMIT="3/hour") as running,
        grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        stub, health = FastEmbedServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        for _ in range(3):
            stub.ListSessions(pb.ListSessionsRequest())
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListSessions(pb.ListSessionsRequest())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = faults.error_of(caught.value)
        assert isinstance(error, RateLimited)
        assert error.fields["limit"] == "3/hour"
        for _ in range(5):
            assert health.Check(health_pb2.HealthCheckRequest()).status == 1
            assert running.client().list_sessions() == []
