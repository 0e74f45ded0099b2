"""The curl requests of a service of this kind, in the order of its manual."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
import requests

from embeddingClient import EmbeddingClient
from embedshare import __version__
from embedshare.web.errors import JSON
from tests.web.conftest import Worker

TEXTS = ["Hello world", "Machine learning is amazing"]


def asked(worker: Worker, path: str) -> Any:
    response = requests.get(f"{worker.url}{path}", headers={"Accept": JSON}, timeout=30)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == JSON
    return response.json()


def test_texts_are_embedded_and_the_worker_tells_how_it_is(worker: Worker, model: EmbeddingClient) -> None:
    before = asked(worker, "/metrics")
    embedded = requests.post(f"{worker.url}/embed", json={"texts": TEXTS}, timeout=30).json()
    rows = np.array(embedded["embeddings"], np.float32)
    assert float((rows * model.encode(TEXTS)).sum(axis=1).min()) > 0.9999

    health = asked(worker, "/health")
    assert set(health) == {"service", "status", "version", "uptime_seconds", "dependencies"}
    assert (health["service"], health["status"], health["version"]) == ("embedshare", "ok", __version__)
    assert health["dependencies"]["model_server"] == "connected"

    refused = requests.post(f"{worker.url}/embed", json={"texts": 7}, timeout=30)
    assert refused.status_code == 400
    metrics = asked(worker, "/metrics")
    assert set(metrics) == {
        "requests_total", "requests_failed", "success_rate", "embeddings_generated", "avg_latency_ms",
        "model_reloads", "model_reload_failures", "uptime_seconds",
    }  # fmt: skip
    assert metrics["requests_total"] - before["requests_total"] == 4  # the first /metrics and these three
    assert metrics["requests_failed"] == before["requests_failed"]  # a caller's error is not a failure
    assert metrics["embeddings_generated"] - before["embeddings_generated"] == len(TEXTS)
    assert 0 < metrics["avg_latency_ms"] < 60_000
    assert 0 <= metrics["success_rate"] <= 1
    assert metrics["uptime_seconds"] > before["uptime_seconds"] > 0

    info = asked(worker, "/model/info")
    described = model.describe()
    assert (info["model_name"], info["identity"]) == (described.model_name, described.identity)
    assert (info["dimension"], info["device"]) == (384, "cpu")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_command_of_the_manual_itself(worker: Worker) -> None:
    done = subprocess.run(
        ["curl", "-sS", "-X", "POST", f"{worker.url}/embed", "-H", "Content-Type: application/json",
         "-d", '{\n    "texts": ["Hello world", "Machine learning is amazing"]\n  }'],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('{"embeddings":[[')
