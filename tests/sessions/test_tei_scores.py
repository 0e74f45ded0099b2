"""The services of text-embeddings-inference beside Embed have the library's own values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from embedshare.grpc import tei_pb2 as pb
from embedshare.grpc.tei_pb2_grpc import EmbedStub, InfoStub, PredictStub, RerankStub
from tests.kinds_server import KindsServer
from tests.session_server import session_server

LIMITS = {"EMBEDDING_MAX_TEXTS": "8", "EMBEDDING_MAX_MESSAGE_BYTES": str(1 << 16)}
QUERY, TEXTS = "many workers", ["one model", "a quick brown fox", "many workers share a model"]


@pytest.fixture(scope="module")
def channel(kinds: KindsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    with (
        session_server(kinds, tmp_path_factory.mktemp("sessions"), **LIMITS) as running,
        grpc.insecure_channel(f"127.0.0.1:{running.port}") as found,
    ):
        yield found


def named(model: str) -> dict[str, Any]:
    """The option of a call that names a model."""
    return {"metadata": (("model", model),)}


def test_rerank_is_sorted_with_shares_or_own_scores(channel: grpc.Channel, kinds: KindsServer) -> None:
    stub, expected = RerankStub(channel), np.asarray(kinds.scores("reranker", QUERY, TEXTS))
    asked = pb.RerankRequest(query=QUERY, texts=TEXTS, truncate=True, return_text=True)
    answer = stub.Rerank(asked, **named("reranker"))
    order = [int(one) for one in np.argsort(-expected)]
    assert [(rank.index, rank.text) for rank in answer.ranks] == [(one, TEXTS[one]) for one in order]
    np.testing.assert_allclose([rank.score for rank in answer.ranks], expected[order], atol=2e-2)
    assert answer.metadata.compute_tokens > 10
    stream = (pb.RerankStreamRequest(query=QUERY, text=text, truncate=True) for text in TEXTS)
    streamed = stub.RerankStream(stream, **named("judge"))
    assert [(rank.index, rank.HasField("text")) for rank in streamed.ranks] == [(one, False) for one in order]
    similar = np.asarray(kinds.scores("tokens", QUERY, TEXTS))
    late = stub.Rerank(pb.RerankRequest(query=QUERY, texts=TEXTS, truncate=True), **named("tokens"))
    np.testing.assert_allclose([rank.score for rank in late.ranks], np.sort(similar)[::-1], rtol=2e-2)


def test_predict_gives_the_labels_of_a_text_and_of_a_pair(channel: grpc.Channel, kinds: KindsServer) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(kinds.folders["classifier"]), device="cpu")
    [expected] = model.predict([(TEXTS[0], TEXTS[1])], activation_fn=torch.nn.Softmax(dim=-1))
    stub = PredictStub(channel)
    pair = pb.PredictPairRequest(inputs=TEXTS[:2], truncate=True)
    answer = stub.PredictPair(pair, **named("classifier"))
    order = [int(one) for one in np.argsort(-expected)]
    assert [one.label for one in answer.predictions] == [f"LABEL_{one}" for one in order]
    np.testing.assert_allclose([one.score for one in answer.predictions], expected[order], atol=2e-2)
    [streamed] = stub.PredictPairStream(iter([pair]), **named("classifier"))
    assert streamed.predictions == answer.predictions
    alone = pb.PredictRequest(inputs=TEXTS[0], truncate=True)
    shares = [one.score for one in stub.Predict(alone, **named("classifier")).predictions]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert len(list(stub.PredictStream(iter([alone] * 3), **named("classifier")))) == 3


def test_sparse_and_token_vectors_are_the_library_s(channel: grpc.Channel, kinds: KindsServer) -> None:
    stub = EmbedStub(channel)
    asked = pb.EmbedSparseRequest(inputs=TEXTS[0], truncate=True)
    found = stub.EmbedSparse(asked, **named("sparse")).sparse_embeddings
    row = kinds.sparse.encode([TEXTS[0]], convert_to_sparse_tensor=False).numpy()[0]
    weights = np.zeros_like(row)
    weights[[one.index for one in found]] = [one.value for one in found]
    np.testing.assert_allclose(weights, row, atol=5e-2)
    [streamed] = stub.EmbedSparseStream(iter([asked]), **named("words"))
    assert streamed.sparse_embeddings == found
    wanted = pb.EmbedAllRequest(inputs=TEXTS[0], truncate=True, prompt_name="query")
    rows = [one.embeddings for one in stub.EmbedAll(wanted, **named("tokens")).token_embeddings]
    [expected] = kinds.tokens.encode_query([TEXTS[0]], convert_to_numpy=True)
    np.testing.assert_allclose(rows, expected, atol=2e-2)
    assert len(list(stub.EmbedAllStream(iter([wanted] * 2), **named("tokens")))) == 2


def test_info_tells_a_reranker_and_a_classifier(channel: grpc.Channel) -> None:
    types = {
        model: InfoStub(channel).Info(pb.InfoRequest(), **named(model)).model_type
        for model in ("reranker", "classifier", "sparse")
    }
    assert types == {
        "reranker": pb.MODEL_TYPE_RERANKER,
        "classifier": pb.MODEL_TYPE_CLASSIFIER,
        "sparse": pb.MODEL_TYPE_EMBEDDING,
    }


def test_what_a_model_cannot_do_is_told(channel: grpc.Channel) -> None:
    rerank, predict, embed = RerankStub(channel), PredictStub(channel), EmbedStub(channel)
    invalid, unknown = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    left = pb.TRUNCATION_DIRECTION_LEFT
    for call, request, model, status, said in (
        (rerank.Rerank, pb.RerankRequest(query="a", texts=["b"]), "dense", invalid, "it gives embeddings"),
        (rerank.Rerank, pb.RerankRequest(query="a"), "reranker", invalid, "cannot be empty"),
        (rerank.Rerank, pb.RerankRequest(query="a", texts=["b"]), "gone", unknown, "gone"),
        (predict.Predict, pb.PredictRequest(inputs="a"), "sparse", invalid, "sparse embeddings"),
        (predict.PredictPair, pb.PredictPairRequest(inputs=["a"]), "classifier", invalid, "a pair"),
        (embed.EmbedSparse, pb.EmbedSparseRequest(inputs="a"), "dense", invalid, "it gives embeddings"),
        (embed.EmbedAll, pb.EmbedAllRequest(inputs="a", truncation_direction=left), "tokens", invalid, "end"),
        (embed.Embed, pb.EmbedRequest(inputs="a"), "reranker", invalid, "scores of pairs"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            call(request, **named(model))
        assert raised.value.code() is status, raised.value.details()
        assert said in raised.value.details()


def test_a_call_beyond_a_limit_is_refused_before_its_texts_are_scored(channel: grpc.Channel) -> None:
    stub, how = RerankStub(channel), named("reranker")

    def refusal(call: Callable[[], Any]) -> str:
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, raised.value.details()
        return str(raised.value.details())

    many = pb.RerankRequest(query="a", texts=["b"] * 9)
    assert "over 8 texts, which EMBEDDING_MAX_TEXTS allows" in refusal(lambda: stub.Rerank(many, **how))
    stream = [pb.RerankStreamRequest(query="a", text="b")] * 9
    told = refusal(lambda: stub.RerankStream(iter(stream), **how))
    assert "over 8 texts, which EMBEDDING_MAX_TEXTS allows" in told
    long = [pb.RerankStreamRequest(query="a", text="b" * 30_000)] * 3
    told = refusal(lambda: stub.RerankStream(iter(long), **how))
    assert "more than 65,536 bytes, which EMBEDDING_MAX_MESSAGE_BYTES allows" in told
