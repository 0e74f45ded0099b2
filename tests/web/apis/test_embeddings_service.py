"""The API at `/api/v1`, over a real worker and model server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import requests

from embeddingClient import EmbeddingClient
from tests.layers import DEFAULT as MODEL
from tests.web.conftest import Worker


def post(worker: Worker, path: str, body: Any) -> requests.Response:
    return requests.post(f"{worker.url}/api/v1/{path}", json=body, timeout=60)


@pytest.mark.parametrize("path", ["embed", "generate"])
def test_a_text_and_a_batch_have_the_model_s_vectors(
    worker: Worker, model: EmbeddingClient, path: str
) -> None:
    texts = ["one model", "many workers", "one model"]
    expected = model.encode(texts, normalize_embeddings=True)
    one = post(worker, path, {"text": texts[0]})
    assert one.status_code == 200, one.text
    assert np.allclose(one.json()["embedding"], expected[0], atol=2e-3)
    assert (one.json()["dimensions"], one.json()["usage"]) == (384, {"prompt_tokens": 4, "total_tokens": 4})
    many = post(worker, f"{path}/batch", {"texts": texts, "model": MODEL}).json()
    assert [each["index"] for each in many["embeddings"]] == [0, 1, 2]
    assert np.allclose([each["embedding"] for each in many["embeddings"]], expected, atol=2e-3)
    assert many["model"] == MODEL
    short = post(worker, path, {"text": texts[0], "dimensions": 8}).json()
    assert short["dimensions"] == len(short["embedding"]) == 8
    assert np.linalg.norm(short["embedding"]) == pytest.approx(1.0, abs=1e-5)


def test_more_than_a_hundred_texts_are_a_batch(worker: Worker) -> None:
    found = post(worker, "embed/batch", {"texts": [f"text {number}" for number in range(250)]}).json()
    assert len(found["embeddings"]) == 250
    assert post(worker, "embed/batch", {"texts": []}).json()["embeddings"] == []


def test_models_are_listed(worker: Worker) -> None:
    listed = requests.get(f"{worker.url}/api/v1/models", timeout=30).json()["models"]
    assert listed == [
        {
            "id": MODEL, "name": MODEL, "provider": "local", "dimensions": 384, "max_tokens": 256,
            "capabilities": ["embeddings"], "family": "embedding",
        }
    ]  # fmt: skip
    single = requests.get(f"{worker.url}/api/v1/models/any-name", timeout=30)
    assert single.json() == listed[0]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("embed", {}, 400, "INVALID_INPUT"),
        ("embed", {"text": 3}, 400, "INVALID_INPUT"),
        ("embed", {"text": "a", "dimensions": 100_000}, 400, "INVALID_INPUT"),
        ("embed/batch", {"texts": "a"}, 400, "INVALID_INPUT"),
        ("nowhere", {}, 404, "NOT_FOUND"),
    ],
)
def test_errors_have_the_api_s_form(worker: Worker, path: str, body: Any, status: int, code: str) -> None:
    answer = post(worker, path, body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["details"]) == (code, {"status": status})
    assert error["message"]
