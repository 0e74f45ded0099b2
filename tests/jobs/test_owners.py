"""Jobs in workers that ask for API keys: each key has its own, and no stranger sends large bodies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.jobs.running import JobWorker, worker_of
from tests.processes import ROOT, ModelServer, wait_for

LARGE = b'"one of many texts of a long list"\n' * 5000


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("owners")
    (folder / "admin.key").write_text("k" * 40)
    (folder / "admin.key").chmod(0o600)
    return {
        "EMBEDDING_API_KEYS": "required",
        "EMBEDDING_DB_URL": f"sqlite:///{folder / 'keys.db'}",
        "EMBEDDING_ADMIN_KEY_FILE": str(folder / "admin.key"),
        "EMBEDDING_JOBS_DIR": str(folder / "store"),
        "EMBEDDING_MAX_MESSAGE_BYTES": "65536",
        "EMBEDDING_MAX_JOB_BYTES": "200000",
    }


@pytest.fixture(scope="module")
def worker(
    server: ModelServer, settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JobWorker]:
    with worker_of(server, tmp_path_factory.mktemp("worker"), **settings) as running:
        yield running


@pytest.fixture(scope="module")
def keys(
    server: ModelServer, settings: dict[str, str], worker: JobWorker, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Keys of three callers, by their names."""
    made = {}
    for name, scope in (("one", "embed"), ("two", "embed"), ("searcher", "search")):
        done = subprocess.run(
            [sys.executable, str(ROOT / "service_manager.py"), "keys", "create", "--name", name,
             "--scopes", scope, "--json"],
            env=server.environment(**settings), cwd=tmp_path_factory.mktemp("keys"),
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        key = made[name] = json.loads(done.stdout)["key"]
        wait_for(lambda key=key: worker.get("/load", key).status_code == 403, 10, "the key's use")
    return made


def test_a_caller_sees_its_own_jobs_and_files_alone(worker: JobWorker, keys: dict[str, str]) -> None:
    job = worker.create(["a text"], keys["one"])
    upload = {"file": ("a.jsonl", b'{"custom_id": "1"}\n')}
    for_batches = requests.post(
        f"{worker.url}/v1/files", files=upload, data={"purpose": "batch"},
        headers={"Authorization": f"Bearer {keys['one']}"}, timeout=30,
    )  # fmt: skip
    assert for_batches.status_code == 200, for_batches.text
    paths = f"/api/v1/jobs/{job['id']}", f"/v1/files/{for_batches.json()['id']}"
    for path in paths:
        assert worker.get(path, keys["one"]).status_code == 200
        for other in (keys["two"], "k" * 40):
            assert worker.get(path, other).status_code == 404
            assert worker.delete(path, other).status_code == 404
        assert worker.get(path, keys["searcher"]).status_code == 403
        assert worker.get(path).status_code == 401
    assert worker.post(f"{paths[0]}/cancel", key=keys["two"]).status_code == 404
    assert worker.get("/api/v1/jobs", keys["two"]).json() == {"jobs": []}
    assert worker.get("/v1/files", keys["two"]).json()["data"] == []
    assert [one["id"] for one in worker.get("/api/v1/jobs", keys["one"]).json()["jobs"]] == [job["id"]]


def test_large_bodies_are_taken_from_callers_that_may_embed_alone(
    worker: JobWorker, keys: dict[str, str]
) -> None:
    assert worker.post("/api/v1/jobs", LARGE, keys["one"], dimensions=8).status_code == 202
    for key in (None, "wrong", keys["searcher"]):
        refused = worker.post("/api/v1/jobs", LARGE, key, dimensions=8)
        assert refused.status_code == 413
        assert "EMBEDDING_MAX_MESSAGE_BYTES allows, 65,536 bytes" in refused.text
    too_large = worker.post("/api/v1/jobs", LARGE * 2, keys["one"])
    assert too_large.status_code == 413
    assert "EMBEDDING_MAX_JOB_BYTES allows, 200,000 bytes" in too_large.json()["error"]["message"]


def test_a_chunked_body_has_the_same_limits(worker: JobWorker, keys: dict[str, str]) -> None:
    def send(key: str, times: int) -> requests.Response:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/jsonl"}
        pieces = iter([LARGE] * times)
        return requests.post(
            f"{worker.url}/api/v1/jobs?dimensions=8", data=pieces, headers=headers, timeout=30
        )

    assert send(keys["two"], 1).status_code == 202
    for key, times in (("wrong", 1), (keys["two"], 2)):
        try:
            assert send(key, times).status_code == 413
        except requests.ConnectionError:
            pass  # the worker closed the connection in mid-body


def test_a_caller_s_jobs_are_bounded(worker: JobWorker, keys: dict[str, str]) -> None:
    answers = [worker.post("/api/v1/jobs", LARGE, keys["two"], dimensions=8) for _ in range(4)]
    assert answers[-1].status_code == 429, answers[-1].text
    assert answers[-1].json()["error"]["code"] == "TOO_MANY_JOBS"
    assert Path(worker.log).read_text().count(keys["two"]) == 0
