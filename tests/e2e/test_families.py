"""A model that sentence-transformers' own code serves, across the wire: tasks, prompts, tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import InvalidInput, NotServed, TooLarge
from tests.engine.small_models import PROMPTS, bert, cnn, modules, saved
from tests.processes import ModelServer

TEXTS = ["model", "", "The QUICK brown Fox", "one model, many workers " * 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    first = bert(place, query_length=8, document_length=24)
    return saved(place, [first, cnn(), modules().Pooling(32)], prompts=PROMPTS)


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    server = ModelServer(
        tmp_path_factory.mktemp("server"),
        EMBEDDING_MODEL_NAME=str(folder),
        EMBEDDING_RUNTIME="torch",  # finds sooner that no faster form agrees
    ).start()
    yield server
    assert server.stop() == 0, server.said().decode()


@pytest.fixture
def client(served: ModelServer) -> Iterator[EmbeddingClient]:
    with served.client(EMBEDDING_FALLBACK="none") as client:
        yield client


@pytest.fixture(scope="module")
def real(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def test_queries_and_documents_have_the_vectors_of_sentence_transformers(
    client: EmbeddingClient, real: Any
) -> None:
    for name in ("encode", "encode_query", "encode_document"):
        expected = getattr(real, name)(TEXTS)
        np.testing.assert_allclose(getattr(client, name)(TEXTS), expected, atol=1e-5)
    for task in ("query", "document"):
        np.testing.assert_allclose(client.encode(TEXTS, task=task), real.encode(TEXTS, task=task), atol=1e-5)
    assert np.abs(client.encode_query(TEXTS[-1]) - client.encode_document(TEXTS[-1])).max() > 0.01


def test_tokens_are_told_as_the_model_reads_them(client: EmbeddingClient, real: Any) -> None:
    expected = real.preprocess(TEXTS)["attention_mask"].sum(1).tolist()
    assert client.embed(TEXTS).token_counts == expected
    assert client.max_seq_length == real.max_seq_length == 128


def test_what_the_model_itself_cannot_be_given_is_refused_as_the_caller_s_error(
    client: EmbeddingClient,
) -> None:
    with pytest.raises(TooLarge, match="text 1 is longer"):
        client.embed(["short", "long " * 300], truncate=False)
    with pytest.raises(NotServed, match="not token ids"):
        client.embed([[101, 102]])
    with pytest.raises(InvalidInput, match="lone surrogate"):
        client.encode("half \ud800")


def test_the_server_says_which_runtime_serves_and_why(served: ModelServer) -> None:
    said = served.said().decode()
    assert "with sentence-transformers, at its speed (its modules over token ids differ" in said
