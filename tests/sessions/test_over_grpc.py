"""The session server as any client sees it: the four calls of the service's first description, and ours."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from embedshare.errors import (
    InvalidInput,
    SessionExists,
    SessionServerUnavailable,
    TooLarge,
    UnknownModel,
    UnknownSession,
)
from embedshare.grpc import fastembed_pb2 as pb
from embedshare.grpc import faults
from embedshare.grpc.client import SessionClient, serves
from embedshare.grpc.fastembed_pb2_grpc import FastEmbedServiceStub
from tests.processes import free_port
from tests.session_server import SessionServer

TEXT = b"the cat sat on the mat\nsnow falls in winter\na compiler translates programs\n"
SERVICE = "fastembed.v1.FastEmbedService"


@pytest.fixture
def channel(running: SessionServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as found:
        yield found


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    """The calls of a client that knows the .proto alone."""
    return FastEmbedServiceStub(channel)


def bare_upload(session: str, data: bytes, size: int) -> Iterator[pb.ProcessFileStreamRequest]:
    """An upload as the first description has it: metadata and chunks, and no last message."""
    described = pb.FileMetadata(filename="a.txt", content_type="text/plain", size=size)
    yield pb.ProcessFileStreamRequest(session_id=session, metadata=described)
    for start in range(0, len(data), 10):
        yield pb.ProcessFileStreamRequest(session_id=session, chunk=data[start : start + 10])


def test_the_four_calls_of_the_first_description(stub: Any) -> None:
    name = uuid.uuid4().hex
    made = stub.CreateSession(pb.CreateSessionRequest(session_id=name, chunk_size=128, chunk_overlap=8))
    assert (made.session_id, made.success, made.message) == (name, True, "created")
    stored = stub.ProcessFileStream(bare_upload(name, TEXT, len(TEXT)))
    assert (stored.success, stored.chunks_processed, stored.embeddings_created, stored.points_stored) == (
        True, 3, 3, 3
    )  # fmt: skip
    assert len(set(stored.chunk_ids)) == 3
    vectors = stub.GetEmbeddings(pb.GetEmbeddingsRequest(session_id=name, texts=["one", "two"]))
    assert [len(one.values) for one in vectors.embeddings] == [vectors.dimension] * 2
    assert stub.DestroySession(pb.DestroySessionRequest(session_id=name)).success
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetSession(pb.GetSessionRequest(session_id=name))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_packed_vectors_are_the_repeated_ones(stub: Any, session: str, client: SessionClient) -> None:
    texts = ["one", "another text"]
    repeated = stub.GetEmbeddings(pb.GetEmbeddingsRequest(session_id=session, texts=texts))
    packed = stub.GetEmbeddings(pb.GetEmbeddingsRequest(session_id=session, texts=texts, packed=True))
    assert not repeated.packed
    assert not packed.embeddings
    rows = client.get_embeddings(session, texts)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.array([one.values for one in repeated.embeddings], np.float32))
    assert packed.packed == rows.tobytes()
    rows[0] = 0  # callers may write into it


def test_the_nearest_chunks_are_found_with_their_places(session: str, client: SessionClient) -> None:
    client.process_file(session, "a.txt", "text/plain", [TEXT[:30], TEXT[30:]], {"year": 2020, "draft": True})
    client.process_file(session, "b.txt", None, [b"frost and ice are cold\n"], {"year": 1999})
    found = client.search(session, "snow falls in winter", top_k=2)
    assert found[0]["text"] == "snow falls in winter"
    assert found[0]["score"] > found[1]["score"]
    assert TEXT[found[0]["start"] : found[0]["end"]] == b"snow falls in winter"
    assert found[0]["metadata"] == {"draft": True, "year": 2020}
    old = client.search(session, "snow", filters={"year": 1999})
    assert [one["text"] for one in old] == ["frost and ice are cold"]
    assert client.search(session, "snow", score_threshold=0.9999) == []
    assert client.get_session(session)["searches"] == 3


@pytest.mark.parametrize("metadata", [{"year": "soon"}, {"draft": 3}, {"a b": "c"}, {"year": 1 << 63}])
def test_metadata_of_another_type_is_refused_before_anything_is_stored(
    session: str, client: SessionClient, metadata: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match="metadata: "):
        client.process_file(session, "a.txt", None, [TEXT], metadata)
    assert client.documents(session) == []


def test_sending_a_file_again_replaces_it(session: str, client: SessionClient) -> None:
    first = client.process_file(session, "a.txt", None, [b"the cat\n", b"the dog\n"])
    again = client.process_file(session, "a.txt", None, [b"a horse\n"])
    assert first["document_id"] == again["document_id"]
    assert [one["text"] for one in client.search(session, "animal")] == ["a horse"]
    [document] = client.documents(session)
    assert (document["state"], document["chunks"], document["bytes"]) == ("ready", 1, 8)
    client.delete_document(session, document["document_id"])
    assert client.search(session, "animal") == []
    assert client.get_session(session)["documents"] == 0
    with pytest.raises(UnknownSession):
        client.document(session, document["document_id"])


def test_chunking_changes_only_while_a_session_is_empty(session: str, client: SessionClient) -> None:
    assert client.update_session(session, chunk_size=64, chunk_overlap=4)["chunk_size"] == 64
    client.process_file(session, "a.txt", None, [TEXT])
    with pytest.raises(SessionExists, match="delete them first"):
        client.update_session(session, chunk_size=32)
    assert client.get_session(session)["chunk_overlap"] == 4


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"chunk_size": 257}, InvalidInput),
        ({"chunk_size": 2}, InvalidInput),
        ({"chunk_size": 100, "chunk_overlap": 99}, InvalidInput),
        ({"session_id": "a/b"}, InvalidInput),
        ({"model": "no such model"}, UnknownModel),
        ({"metadata_schema": {"a": "text"}}, InvalidInput),
        ({"qdrant_config": {"url": "http://169.254.169.254", "collection": "a"}}, InvalidInput),
        ({"qdrant_config": {"host": "a"}}, InvalidInput),
    ],
)
def test_a_session_that_cannot_be_is_refused_and_not_made(
    client: SessionClient, given: dict[str, Any], error: type[Exception]
) -> None:
    name = uuid.uuid4().hex
    with pytest.raises(error):
        client.create_session(**{"session_id": name, **given})
    with pytest.raises(UnknownSession):
        client.get_session(name)


def test_an_id_is_taken_once_by_each_owner(running: SessionServer, session: str) -> None:
    with pytest.raises(SessionExists):
        running.client().create_session(session)
    other = running.client("key 7")
    with pytest.raises(UnknownSession):
        other.get_session(session)
    assert other.create_session(session)["documents"] == 0
    assert [one["session_id"] for one in other.list_sessions()] == [session]
    other.destroy_session(session)
    assert running.client().get_session(session)["session_id"] == session


def test_an_owner_without_a_proof_of_the_key_gets_nothing(running: SessionServer, stub: Any) -> None:
    forged = [("embedshare-owner-bin", b"key 1"), ("embedshare-time", f"{time.time():.3f}")]
    forged.append(("embedshare-proof-bin", hashlib.sha256(b"a guess").digest()))
    with pytest.raises(grpc.RpcError) as caught:
        stub.ListSessions(pb.ListSessionsRequest(), metadata=forged)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_request_has_one_id_from_the_caller_into_the_log(running: SessionServer, stub: Any) -> None:
    name = f"request-{uuid.uuid4().hex}"
    _, call = stub.CreateSession.with_call(pb.CreateSessionRequest(), metadata=[("x-request-id", name)])
    assert ("x-request-id", name) in call.initial_metadata()
    assert f"[{name}] Created session".encode() in running.said()


def test_health_and_reflection_tell_of_the_service(running: SessionServer, channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
    assert serves(running.settings(), 5.0)
    assert not serves(running.settings(EMBEDDING_SESSIONS_PORT=str(free_port())), 1.0)
    assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_a_message_over_the_limit_is_told_of_on_both_sides(
    running: SessionServer, session: str, stub: Any
) -> None:
    large = ["x" * (running.settings().server.max_message_bytes)]
    with pytest.raises(TooLarge, match="EMBEDDING_MAX_MESSAGE_BYTES allows 33,554,432"):
        running.client().get_embeddings(session, large)
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetEmbeddings(pb.GetEmbeddingsRequest(session_id=session, texts=large))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (caught.value.details() or "")
    assert isinstance(faults.error_of(caught.value), TooLarge)


def test_a_single_text_is_no_list(session: str, client: SessionClient) -> None:
    with pytest.raises(InvalidInput, match="list of texts"):
        client.get_embeddings(session, "letters")
    with pytest.raises(InvalidInput, match="texts is empty"):
        client.get_embeddings(session, [])


def test_without_a_session_server_the_client_says_so(running: SessionServer) -> None:
    away = running.client(EMBEDDING_SESSIONS_PORT=str(free_port()))
    with pytest.raises(SessionServerUnavailable, match="start one, or retry later"):
        away.status()


def test_the_status_counts_calls_by_method_and_outcome(client: SessionClient, session: str) -> None:
    before = client.status()["calls"].get("GetSession NOT_FOUND", 0)
    with pytest.raises(UnknownSession):
        client.get_session("none")
    told = client.status()
    assert told["calls"]["GetSession NOT_FOUND"] == before + 1
    assert told["sessions"] >= 1
    assert told["p99_ms"]["GetSession"] > 0
