"""The services of text-embeddings-inference, as its clients call them."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.grpc import tei_pb2 as pb
from embedshare.grpc.tei_calls import in_order
from embedshare.grpc.tei_pb2_grpc import EmbedStub, InfoStub, TokenizeStub
from tests.session_server import SessionServer


@pytest.fixture
def channel(running: SessionServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as found:
        yield found


@pytest.fixture
def model(running: SessionServer) -> Iterator[EmbeddingClient]:
    with running.server.client() as found:
        yield found


def embed(text: str, **how: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(inputs=text, truncate=True, **how)


def test_info_describes_the_default_model(channel: grpc.Channel, model: EmbeddingClient) -> None:
    info, described = InfoStub(channel).Info(pb.InfoRequest()), model.describe()
    assert (info.model_id, info.model_sha) == (described.model_name, described.identity)
    assert (info.max_input_length, info.model_type) == (described.max_seq_length, pb.MODEL_TYPE_EMBEDDING)


def test_a_vector_is_the_model_s_own_with_its_figures(channel: grpc.Channel, model: EmbeddingClient) -> None:
    answer = EmbedStub(channel).Embed(embed("one text", normalize=True))
    np.testing.assert_allclose(answer.embeddings, model.encode("one text"), atol=1e-6)
    assert (answer.metadata.compute_chars, answer.metadata.compute_tokens) == (8, 4)
    assert answer.metadata.total_time_ns >= answer.metadata.inference_time_ns > 0


def test_a_stream_is_answered_in_its_order(channel: grpc.Channel, model: EmbeddingClient) -> None:
    texts = [f"text number {number}" for number in range(100)]
    answers = EmbedStub(channel).EmbedStream(map(embed, texts))
    rows = np.array([answer.embeddings for answer in answers])
    np.testing.assert_allclose(rows, model.encode(texts), atol=1e-5)


def test_a_client_that_waits_for_each_answer_gets_it(channel: grpc.Channel) -> None:
    sent: queue.SimpleQueue[pb.EmbedRequest | None] = queue.SimpleQueue()
    answers = EmbedStub(channel).EmbedStream(iter(sent.get, None))
    for number in range(3):
        sent.put(embed(f"text {number}"))
        assert len(next(answers).embeddings) == 384
    sent.put(None)
    assert list(answers) == []


def test_tokens_are_the_model_s_own(channel: grpc.Channel) -> None:
    asked = pb.EncodeRequest(inputs="one text", add_special_tokens=True)
    tokens = TokenizeStub(channel).Tokenize(asked).tokens
    assert [(token.text, token.special) for token in tokens] == [
        ("[CLS]", True), ("one", False), ("text", False), ("[SEP]", True),
    ]  # fmt: skip
    assert [(token.start, token.stop) for token in tokens[1:3]] == [(0, 3), (4, 8)]
    assert not tokens[0].HasField("start")
    [streamed] = TokenizeStub(channel).TokenizeStream(iter([asked]))
    assert streamed.tokens == tokens


def test_what_it_cannot_do_is_told(channel: grpc.Channel) -> None:
    stub = EmbedStub(channel)
    for request in (
        pb.EmbedRequest(inputs="word " * 5000, truncate=False),
        embed("a", prompt_name="unknown"),
        embed("a", truncation_direction=pb.TRUNCATION_DIRECTION_LEFT),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            stub.Embed(request)
        assert raised.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    with pytest.raises(grpc.RpcError) as raised:
        list(stub.EmbedStream(iter([embed("a", prompt_name="unknown")])))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_answers_come_in_order_whatever_takes_long_and_at_most_so_many_at_a_time() -> None:
    running = most = 0

    async def requests() -> AsyncIterator[int]:
        for number in range(40):
            yield number

    async def answer(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02 if number % 7 == 0 else 0.0)
        running -= 1
        return number * 2

    async def collected() -> list[int]:
        return [found async for found in in_order(requests(), answer, most=5)]

    assert asyncio.run(collected()) == [2 * number for number in range(40)]
    assert most <= 5
