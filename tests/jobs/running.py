"""Runners of jobs for tests: `python -m embedshare.jobs` beside a model server and a worker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from embedshare.jobs import place
from tests.processes import SRC, ModelServer, free_port, wait_for


class Runner:
    """`python -m embedshare.jobs` for the workers of a server."""

    def __init__(self, server: ModelServer, log: Path, **settings: str) -> None:
        self.server = server
        self.settings = settings
        self.log = log
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "embedshare.jobs"],
                env=self.server.environment(**self.settings), cwd=self.log.parent,
                stdout=output, stderr=output,
            )  # fmt: skip
        settings = self.server.settings(**self.settings)
        wait_for(lambda: place.has_runner(settings), 30, "the runner's start")

    def kill(self) -> None:
        """SIGKILL: it gets no chance to finish its part."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(30)


class JobWorker:
    """`python src/app.py` on a free port, which takes jobs."""

    def __init__(self, server: ModelServer, log: Path, **settings: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(SRC / "app.py")],
                env=server.environment(EMBEDDING_FALLBACK="none", PORT=str(port), **settings),
                cwd=log.parent, stdout=output, stderr=output,
            )  # fmt: skip
        wait_for(lambda: b"ready: http" in log.read_bytes(), 60, "the worker's ready line")

    def create(self, texts: Iterable[Any], key: str | None = None, **query: Any) -> dict[str, Any]:
        """A new job."""
        body = "".join(json.dumps(text) + "\n" for text in texts).encode()
        answer = self.post("/api/v1/jobs", body, key, **query)
        assert answer.status_code == 202, answer.text
        found: dict[str, Any] = answer.json()
        assert answer.headers["Location"] == f"/api/v1/jobs/{found['id']}"
        return found

    def post(self, path: str, body: bytes = b"", key: str | None = None, **query: Any) -> requests.Response:
        headers = {"Content-Type": "application/jsonl", **_headers(key)}
        return requests.post(f"{self.url}{path}", data=body, params=query, headers=headers, timeout=120)

    def get(self, path: str, key: str | None = None, **query: Any) -> requests.Response:
        return requests.get(f"{self.url}{path}", params=query, headers=_headers(key), timeout=120)

    def delete(self, path: str, key: str | None = None) -> requests.Response:
        return requests.delete(f"{self.url}{path}", headers=_headers(key), timeout=120)

    def job(self, name: str, key: str | None = None) -> dict[str, Any]:
        answer = self.get(f"/api/v1/jobs/{name}", key)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait_until(
        self, name: str, status: str, limit_s: float = 120, key: str | None = None
    ) -> dict[str, Any]:
        """The job once it has this status."""
        return wait_for(
            lambda: (found := self.job(name, key))["status"] == status and found,
            limit_s, f"the status {status} of a job",
        )  # fmt: skip

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0
        assert "Traceback" not in self.log.read_text(), self.log.read_text()


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


@contextmanager
def worker_of(server: ModelServer, folder: Path, **settings: str) -> Iterator[JobWorker]:
    """A worker, stopped at the end."""
    running = JobWorker(server, folder / "worker.log", **settings)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def runner_of(server: ModelServer, folder: Path, **settings: str) -> Iterator[Runner]:
    """A runner, stopped at the end."""
    running = Runner(server, folder / "jobs.log", **settings)
    try:
        yield running
    finally:
        code = running.stop()
        assert code == 0, running.log.read_text()
        assert "Traceback" not in running.log.read_text(), running.log.read_text()
