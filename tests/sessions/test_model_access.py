"""A key for some models reaches no other model of the session server, whichever field of a call names it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import pytest

from embedshare.database.api_keys import Keys
from embedshare.database.database import Database
from embedshare.errors import Forbidden, UnknownSession
from embedshare.grpc import tei_pb2 as pb
from embedshare.grpc import tei_pb2_grpc
from embedshare.grpc.client import SessionClient
from embedshare.grpc.tei_pb2_grpc import EmbedStub, RerankStub
from tests.kinds_server import KindsServer
from tests.session_server import SessionServer, session_server

TEXT = "one model, many workers"
METHODS: dict[str, Any] = {
    name: method
    for service in pb.DESCRIPTOR.services_by_name.values()
    for name, method in service.methods_by_name.items()
}
REQUESTS: dict[str, Any] = {
    "InfoRequest": pb.InfoRequest(),
    "EmbedRequest": pb.EmbedRequest(inputs=TEXT),
    "EmbedSparseRequest": pb.EmbedSparseRequest(inputs=TEXT),
    "EmbedAllRequest": pb.EmbedAllRequest(inputs=TEXT),
    "EncodeRequest": pb.EncodeRequest(inputs=TEXT),
    "PredictRequest": pb.PredictRequest(inputs=TEXT),
    "PredictPairRequest": pb.PredictPairRequest(inputs=[TEXT, TEXT]),
    "RerankRequest": pb.RerankRequest(query=TEXT, texts=[TEXT]),
    "RerankStreamRequest": pb.RerankStreamRequest(query=TEXT, text=TEXT),
}


class Asked(NamedTuple):
    """A session server that asks for keys, and one for the models `dense` and `judge`."""

    server: SessionServer
    channel: grpc.Channel
    key: str

    def client(self) -> SessionClient:
        return self.server.client(api_key=self.key)


@pytest.fixture(scope="module")
def asked(kinds: KindsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("access")
    database = Database.open(SessionServer(kinds, folder).settings(), folder)
    _, key = Keys(database).create("two models", ["embed"], models=["dense", "judge"])
    database.close()
    with (
        session_server(kinds, folder, EMBEDDING_API_KEYS="required") as running,
        grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        yield Asked(running, channel, key)


def test_a_session_needs_a_key_for_its_sparse_model(asked: Asked) -> None:
    client = asked.client()
    for name in ("sparse", "words"):
        with pytest.raises(Forbidden, match=f"may not use the model '{name}'; it may use: dense, judge"):
            client.create_session("hybrid", sparse_model=name)
    with pytest.raises(UnknownSession):
        client.get_session("hybrid")


def test_a_search_needs_a_key_for_its_reranker(asked: Asked) -> None:
    client = asked.client()
    client.create_session("own", chunk_overlap=0)
    client.process_file("own", "a.txt", None, [TEXT.encode()])
    [found] = client.search("own", TEXT, rerank="reranker")  # by another of its names
    assert 0 < found["rerank_score"] < 1
    with pytest.raises(Forbidden, match="may not use the model 'tokens'"):
        client.search("own", TEXT, rerank="tokens")
    assert client.get_session("own")["searches"] == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_metadata_of_a_call_leads_a_key_to_no_other_model(asked: Asked, method: str) -> None:
    for model in ("tokens", "several", "words", "no such model"):
        with pytest.raises(grpc.RpcError) as raised:
            call(asked, method, metadata=(("model", model), ("x-api-key", asked.key)))
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED, raised.value.details()
        assert f"may not use the model '{model}'" in raised.value.details()


def call(asked: Asked, method: str, **how: Any) -> None:
    """Send a request to a method of text-embeddings-inference's services, and read its whole answer."""
    described = METHODS[method]
    request = REQUESTS[described.input_type.name]
    stub = getattr(tei_pb2_grpc, f"{described.containing_service.name}Stub")(asked.channel)
    answer = getattr(stub, method)(iter([request]) if described.client_streaming else request, **how)
    if described.server_streaming:
        list(answer)


def test_the_metadata_leads_a_key_to_its_own_models(asked: Asked) -> None:
    for model in ("judge", "reranker"):
        how = {"metadata": (("model", model), ("x-api-key", asked.key))}
        stub = RerankStub(asked.channel)
        assert len(stub.Rerank(pb.RerankRequest(query=TEXT, texts=[TEXT, "a"]), **how).ranks) == 2
    default = {"metadata": (("x-api-key", asked.key),)}
    assert EmbedStub(asked.channel).Embed(pb.EmbedRequest(inputs=TEXT), **default).embeddings
