"""A job survives the kill of its runner and of the model server; only the part under way is lost."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedshare.jobs import place
from tests.jobs.running import JobWorker, Runner, runner_of, worker_of
from tests.processes import ModelServer, wait_for

TEXTS = [f"sentence {number} of a long list, about the number {number * 7}" for number in range(6000)]


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ModelServer]:
    """A model server whose requests are these jobs' alone."""
    running = ModelServer(tmp_path).start()
    yield running
    if not running.ended:
        assert running.stop() == 0


def result(worker: JobWorker, job: dict[str, Any]) -> np.ndarray:
    answer = worker.get(f"/api/v1/jobs/{job['id']}/result", format="npy")
    assert answer.status_code == 200, answer.text
    rows: np.ndarray = np.load(io.BytesIO(answer.content))
    return rows


def embedded(server: ModelServer) -> int:
    """The texts that the server has embedded."""
    with server.client(EMBEDDING_FALLBACK="none") as client:
        return int(client.stats()["sequences"])


def test_a_runner_killed_in_mid_job_computes_at_most_one_part_again_and_bit_for_bit_the_same(
    own_server: ModelServer, tmp_path: Path
) -> None:
    with worker_of(own_server, tmp_path) as worker:
        with runner_of(own_server, tmp_path):
            whole = worker.create(TEXTS)
            worker.wait_until(whole["id"], "done")
        before = embedded(own_server)
        killed = worker.create(TEXTS)
        running = Runner(own_server, tmp_path / "jobs.log")
        wait_for(lambda: worker.job(killed["id"])["done"] > 0, what="the first part")
        running.kill()
        done = worker.job(killed["id"])["done"]
        assert 0 < done < len(TEXTS)
        assert worker.job(killed["id"])["status"] == "running"
        with runner_of(own_server, tmp_path):
            worker.wait_until(killed["id"], "done")
        assert np.array_equal(result(worker, killed), result(worker, whole))
        again = embedded(own_server) - before - len(TEXTS)
        assert 0 <= again <= 1024


def test_a_job_waits_for_a_killed_server_and_goes_on_with_it(own_server: ModelServer, tmp_path: Path) -> None:
    with worker_of(own_server, tmp_path) as worker, runner_of(own_server, tmp_path) as running:
        job = worker.create(TEXTS)
        wait_for(lambda: worker.job(job["id"])["done"] > 0, what="the first part")
        own_server.kill()
        done = worker.job(job["id"])["done"]
        assert done < len(TEXTS)
        assert worker.job(job["id"])["status"] == "running"
        own_server.start()
        worker.wait_until(job["id"], "done")
        rows = result(worker, job)
        with own_server.client() as client:
            assert np.abs(rows - client.encode(TEXTS, normalize_embeddings=True)).max() < 5e-3
        assert not re.search("loading a local model|local model", running.log.read_text())


def test_two_runners_share_a_folder_and_one_computes(own_server: ModelServer, tmp_path: Path) -> None:
    with worker_of(own_server, tmp_path) as worker, runner_of(own_server, tmp_path) as first:
        second = Runner(own_server, tmp_path / "second.log")
        job = worker.create(TEXTS[:2000])
        worker.wait_until(job["id"], "done")
        assert "Starting job" not in second.log.read_text()
        first.kill()
        wait_for(lambda: "ready: jobs" in second.log.read_text(), what="the second's turn")
        assert place.has_runner(own_server.settings())
        worker.wait_until(worker.create(["one more"])["id"], "done")
        assert second.stop() == 0
        first.start()
