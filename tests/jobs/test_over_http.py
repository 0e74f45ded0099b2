"""Jobs over HTTP: a real worker, model server and runner."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests

from embeddingClient import EmbeddingClient
from tests.jobs.running import JobWorker, runner_of, worker_of
from tests.processes import ModelServer


@pytest.fixture(scope="module")
def worker(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobWorker]:
    folder = tmp_path_factory.mktemp("jobs")
    place = {"EMBEDDING_JOBS_DIR": str(folder / "store")}
    with (
        worker_of(server, folder, EMBEDDING_MAX_MESSAGE_BYTES="65536", **place) as running,
        runner_of(server, folder, **place),
    ):
        yield running


def refusal(worker: JobWorker, body: bytes, **query: Any) -> tuple[int, str, str]:
    answer = worker.post("/api/v1/jobs", body, **query)
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


def test_a_job_gives_the_model_s_vectors_in_both_forms(worker: JobWorker, model: EmbeddingClient) -> None:
    texts = [f"text number {number} of a list" for number in range(2500)]
    job = worker.create([*texts[:5], *({"text": text} for text in texts[5:])])
    assert (job["status"], job["total"], job["kind"]) == ("queued", 2500, "texts")
    done = worker.wait_until(job["id"], "done")
    assert (done["done"], done["left"], done["eta_s"]) == (2500, 0, None)
    assert done["created_at"] <= done["started_at"] <= done["finished_at"] < done["expires_at"]
    answer = worker.get(f"/api/v1/jobs/{job['id']}/result", format="npy")
    rows = np.load(io.BytesIO(answer.content))
    assert (rows.dtype, rows.shape) == (np.dtype("<f4"), (2500, 384))
    expected = model.encode(texts, normalize_embeddings=True)
    assert np.abs(rows - expected).max() < 5e-3
    listed = worker.get(f"/api/v1/jobs/{job['id']}/result")
    assert listed.headers["Content-Type"] == "application/jsonl"
    lines = [json.loads(line) for line in listed.text.splitlines()]
    assert [line["index"] for line in lines] == list(range(2500))
    assert np.array_equal(np.array([line["embedding"] for line in lines], np.float32), rows)
    assert lines[7]["tokens"] == len(model.tokenize([texts[7]])["input_ids"][0])
    assert worker.delete(f"/api/v1/jobs/{job['id']}").status_code == 204
    assert worker.get(f"/api/v1/jobs/{job['id']}").status_code == 404


def test_a_body_beyond_the_limit_of_other_routes_is_taken_here_alone(worker: JobWorker) -> None:
    texts = ["one of many texts " * 5] * 5000
    assert worker.post("/api/v1/embed/batch", json.dumps({"texts": texts}).encode()).status_code == 413
    job = worker.create(texts)
    assert job["total"] == 5000
    assert worker.delete(f"/api/v1/jobs/{job['id']}").status_code == 204


def test_a_page_in_a_browser_cannot_send_a_large_body_to_a_worker_without_keys(worker: JobWorker) -> None:
    headers = {"Origin": "https://other.example", "Content-Type": "text/plain"}
    body = b'"one of many texts"\n' * 5000
    answer = requests.post(f"{worker.url}/api/v1/jobs", data=body, headers=headers, timeout=30)
    assert answer.status_code == 413
    assert "EMBEDDING_MAX_MESSAGE_BYTES" in answer.text


def test_options_shape_the_vectors(worker: JobWorker, model: EmbeddingClient) -> None:
    job = worker.create(["a text", "another"], dimensions=8, normalize="false")
    worker.wait_until(job["id"], "done")
    rows = np.load(io.BytesIO(worker.get(f"/api/v1/jobs/{job['id']}/result", format="npy").content))
    assert rows.shape == (2, 8)
    assert np.allclose(rows, model.encode(["a text", "another"], truncate_dim=8), atol=5e-3)


@pytest.mark.parametrize(
    ("body", "query", "status", "code", "says"),
    [
        (b'"good"\n{"texts": 1}\n', {}, 400, "INVALID_INPUT", "line 2 must be JSON such as"),
        (b'"good"\n\n"good"\n', {}, 400, "INVALID_INPUT", "line 2 must be JSON"),
        (b'"\xff"\n', {}, 400, "INVALID_INPUT", "not UTF-8"),
        (b'"\\ud800"\n', {}, 400, "INVALID_INPUT", "surrogate"),
        (b"", {}, 400, "INVALID_INPUT", "the body has no lines"),
        (b'"' + b"x" * 70_000 + b'"\n', {}, 413, "TOO_LARGE", "line 1 is longer than 61,440 bytes"),
        (b'"a"\n', {"dimensions": 0}, 400, "INVALID_INPUT", "a parameter of the address is wrong"),
        (b'"a"\n', {"dimensions": 999}, 400, "INVALID_INPUT", "allows 1 to 384"),
        (b'"a"\n', {"normalize": "maybe"}, 400, "INVALID_INPUT", "a parameter of the address is wrong"),
        (b'"a"\n', {"prompt_name": "nowhere"}, 400, "INVALID_INPUT", "unknown prompt 'nowhere'"),
    ],
)
def test_what_is_wrong_is_said_and_leaves_nothing(
    worker: JobWorker, body: bytes, query: dict[str, Any], status: int, code: str, says: str
) -> None:
    before = worker.get("/api/v1/jobs").json()
    found = refusal(worker, body, **query)
    assert found[:2] == (status, code), found
    assert says in found[2]
    assert worker.get("/api/v1/jobs").json() == before


def test_a_type_that_is_not_lines_is_refused(worker: JobWorker) -> None:
    answer = requests.post(f"{worker.url}/api/v1/jobs", json=["a"], timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("name", ["0" * 32, "..", "%2e%2e%2fauthkey", "note.json", "A" * 32])
def test_an_unknown_id_is_no_path(worker: JobWorker, name: str) -> None:
    for answer in (worker.get(f"/api/v1/jobs/{name}/result"), worker.post(f"/api/v1/jobs/{name}/cancel")):
        assert answer.status_code in (404, 405), answer.text


def test_a_result_of_a_job_that_is_not_done_is_a_conflict(
    server: ModelServer, worker: JobWorker, tmp_path: Any
) -> None:
    with worker_of(server, tmp_path, EMBEDDING_JOBS_DIR=str(tmp_path / "alone")) as alone:
        job = alone.create(["a text"])
        answer = alone.get(f"/api/v1/jobs/{job['id']}/result")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "JOB_NOT_DONE")
        cancelled = alone.post(f"/api/v1/jobs/{job['id']}/cancel").json()
        assert (cancelled["status"], cancelled["left"]) == ("cancelled", 1)
        assert alone.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 200
        assert [each["id"] for each in alone.get("/api/v1/jobs").json()["jobs"]] == [job["id"]]


def test_a_job_that_has_ended_cannot_be_cancelled(worker: JobWorker) -> None:
    job = worker.create(["a text"])
    worker.wait_until(job["id"], "done")
    answer = worker.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "JOB_ENDED")


def test_a_worker_without_jobs_says_so(server: ModelServer, tmp_path: Any) -> None:
    with worker_of(server, tmp_path, EMBEDDING_JOBS="false") as without:
        answer = without.post("/api/v1/jobs", b'"a"\n')
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "JOBS_DISABLED")
