"""A model server whose models are another worker's, over OpenAI's, Ollama's and TEI's APIs."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import ModelMismatch, ProviderFailed, ProviderRefused
from tests.e2e.test_models import write
from tests.processes import MODEL, ModelServer, wait_for
from tests.watching import Worker

TEXTS = ["one text", "Größe und Café", "a longer text of several words that all models read", "東京"]
PROVIDERS = ("openai", "ollama", "tei")
FILE = """
models:
  openai:
    - id: over-openai
      name: For people to read
      model: first-layer
      base_url: {url}/v1
      dimensions: 384
      space: layers
      failover: [over-tei, here]
      default: true
    - id: refused
      model: no-such-model
      base_url: {url}/v1
  ollama:
    - id: over-ollama
      model: first-layer
      base_url: {url}
      space: layers
    - id: wrong
      model: first-layer
      base_url: {url}
      dimensions: 100
  tei:
    - id: over-tei
      base_url: {url}
      space: layers
  local:
    - id: here
      name: {model}
      space: layers
      preload: true
"""


@pytest.fixture(scope="module")
def end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModelServer, Worker]]:
    folder = tmp_path_factory.mktemp("end")
    server = ModelServer(folder, EMBEDDING_MODEL_NAME=MODEL, EMBEDDING_MODEL_ALIASES="another")
    server.start()
    worker = Worker(server, folder, EMBEDDING_FALLBACK="none")
    yield server, worker
    worker.stop()
    server.stop()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, end: tuple[ModelServer, Worker]
) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("providers")
    path = write(folder, FILE.format(url=end[1].url, model=MODEL))
    ours = ModelServer(folder, EMBEDDING_MODELS_FILE=str(path))
    ours.start()
    yield ours
    assert ours.stop() == 0, ours.said().decode()


@pytest.fixture(scope="module")
def client(server: ModelServer) -> Iterator[EmbeddingClient]:
    with server.client(EMBEDDING_FALLBACK="none", EMBEDDING_TIMEOUT_S="20") as ours:
        yield ours


@pytest.fixture(scope="module")
def expected(end: tuple[ModelServer, Worker]) -> np.ndarray:
    with end[0].client() as client:
        return np.asarray(client.encode(TEXTS, normalize_embeddings=True))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_provider_s_vectors_are_the_model_s_own(
    client: EmbeddingClient, expected: np.ndarray, provider: str
) -> None:
    model = client.of_model(f"over-{provider}")
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
    many = [f"text {number}" for number in range(300)]
    assert model.encode(many).shape == (300, 384)
    described = model.describe()
    assert (described.device, described.runtime, described.dimension) == ("remote", provider, 384)


def test_the_tokens_of_a_remote_model_are_counted_and_shown(client: EmbeddingClient) -> None:
    counted = client.of_model("here").embed(TEXTS).tokens
    assert client.of_model("over-openai").embed(TEXTS).tokens == counted
    remote, local = (client.of_model(name).tokenize(TEXTS[:2]) for name in ("over-tei", "here"))
    assert remote["input_ids"].tolist() == local["input_ids"].tolist()


def test_models_of_one_space_may_be_mixed_and_others_not(client: EmbeddingClient) -> None:
    identities = {
        one: client.of_model(one).describe().identity for one in ("over-openai", "over-ollama", "here")
    }
    assert identities["over-openai"] == identities["over-ollama"] != identities["here"]


def test_other_dimensions_than_declared_are_refused(client: EmbeddingClient) -> None:
    with pytest.raises(ModelMismatch, match="has 384 dimensions; wrong is to have 100"):
        client.of_model("wrong").encode(TEXTS)


def test_health_checks_ask_no_remote_service(
    client: EmbeddingClient, end: tuple[ModelServer, Worker]
) -> None:
    client.encode(TEXTS)

    def requests() -> int:
        return sum({one["id"]: one for one in client.models()}["over-openai"]["service"]["requests"].values())

    before = requests()
    time.sleep(2.2)  # a local model is asked by then
    assert client.health()["status"] == "ok"
    assert requests() == before


def test_a_model_that_the_service_does_not_have_is_told(client: EmbeddingClient) -> None:
    with pytest.raises(ProviderRefused, match="openai answers 404 for no-such-model"):
        client.of_model("refused").encode(TEXTS)


def test_a_remote_model_is_not_swapped_and_takes_no_memory(client: EmbeddingClient) -> None:
    entries = {one["id"]: one for one in client.models()}
    assert entries["over-openai"]["bytes"] == 0
    assert entries["over-openai"]["title"] == "For people to read"
    assert entries["over-openai"]["provider"] == "openai"


def test_calls_go_on_while_the_service_is_dead_and_return_to_it(
    server: ModelServer, end: tuple[ModelServer, Worker], client: EmbeddingClient, expected: np.ndarray
) -> None:
    worker = end[1]
    identity = client.describe().identity
    worker.process.send_signal(signal.SIGKILL)
    worker.process.wait(10)
    slowest = 0.0
    for _ in range(20):
        began = time.monotonic()
        result = client.embed(TEXTS)
        slowest = max(slowest, time.monotonic() - began)
        np.testing.assert_allclose(result.rows, expected, atol=1e-3)  # the local model of the space
        assert result.identity == identity
    assert slowest < 5
    with pytest.raises(ProviderFailed):
        client.of_model("over-ollama").encode(["no other model answers for it"])
    worker.start()

    def has_returned() -> bool:
        client.encode(TEXTS)
        entry = {one["id"]: one for one in client.models()}["over-openai"]
        return bool(entry["service"]["breaker"] == "closed")

    wait_for(has_returned, 60)
    before = {one["id"]: one["failovers"] for one in client.models()}["over-openai"]
    assert before >= 20
    client.encode(TEXTS)
    assert {one["id"]: one["failovers"] for one in client.models()}["over-openai"] == before


def test_a_worker_shows_the_providers(server: ModelServer, tmp_path: Path, client: EmbeddingClient) -> None:
    client.of_model("over-openai").encode(TEXTS)
    worker = Worker(server, tmp_path)

    def read(path: str) -> Any:
        with urllib.request.urlopen(f"{worker.url}{path}", timeout=20) as answer:
            return json.load(answer)

    try:
        models = {one["id"]: one for one in read("/api/v1/models")["models"]}
        assert (models["over-openai"]["provider"], models["here"]["provider"]) == ("openai", "local")
        assert models["over-openai"]["name"] == "For people to read"
        health = read("/embedding/health")
        shown = {"state": "ready", "provider": "openai", "service": "closed"}
        assert health["models"]["over-openai"] == shown
        assert health["models"]["refused"]["state"] == "failed"
        assert read("/health")["dependencies"]["openai"] == "connected"
        services = {one["model"]: one for one in read("/dashboard/data")["services"]}
        assert (services["over-openai"]["state"], services["over-openai"]["provider"]) == ("closed", "openai")
        assert services["over-openai"]["answered"] > 0
        assert services["over-openai"]["p50_ms"] > 0
    finally:
        worker.stop()
