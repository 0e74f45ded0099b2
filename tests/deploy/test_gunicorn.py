"""deploy/gunicorn.conf.py under a real gunicorn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.processes import ROOT, ModelServer, free_port, wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gunicorn does not run on Windows")


class Gunicorn:
    """A running gunicorn with two workers."""

    def __init__(self, folder: Path, server: ModelServer, **changes: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.said = folder / "gunicorn.log"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        settings = {
            "PORT": str(self.port),
            "TMPDIR": str(self.temporary),
            "EMBEDDING_FALLBACK": "none",
            **changes,
        }
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "deploy" / "gunicorn.conf.py")],
                env=server.environment(**settings), cwd=folder, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_for(lambda: self.answers("/health") or self.process.poll() is not None, 60, "gunicorn")
        assert self.process.poll() is None, self.said.read_text()

    def answers(self, path: str) -> bool:
        try:
            return requests.get(f"{self.url}{path}", timeout=10).ok
        except requests.RequestException:
            return False

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


@pytest.fixture
def gunicorn(tmp_path: Path, server: ModelServer) -> Iterator[Gunicorn]:
    running = Gunicorn(tmp_path, server)
    yield running
    if running.process.poll() is None:
        running.process.kill()


def test_its_workers_embed_and_one_that_is_killed_is_replaced(gunicorn: Gunicorn) -> None:
    wait_for(lambda: len(gunicorn.workers()) == 2, 60, "two workers")
    before = gunicorn.workers()
    answer = requests.post(f"{gunicorn.url}/embed", json={"texts": ["one", "two"]}, timeout=60)
    assert [len(row) for row in answer.json()["embeddings"]] == [384, 384]
    killed = min(before)
    (folder,) = gunicorn.temporary.glob("embedshare-metrics-*")
    of_the_living, counted = folder / f"gauge_livesum_{killed}.db", folder / f"counter_{killed}.db"
    pytest.importorskip("prometheus_client")
    for file in (of_the_living, counted):
        file.touch()
    psutil.Process(killed).kill()
    wait_for(lambda: len(gunicorn.workers() - before) == 1, 60, "another worker")
    wait_for(lambda: not of_the_living.exists(), 60, "the end of its gauges")
    assert counted.exists()
    answer = requests.post(f"{gunicorn.url}/embed", json={"texts": ["three"]}, timeout=60)
    assert answer.status_code == 200
    assert gunicorn.stop() == 0
    assert list(gunicorn.temporary.iterdir()) == []
    said = gunicorn.said.read_text()
    assert "Traceback" not in said
    assert "Using worker: gthread" in said


def test_every_line_of_its_log_is_json_where_that_is_asked_for(tmp_path: Path, server: ModelServer) -> None:
    running = Gunicorn(tmp_path, server, EMBEDDING_LOG_FORMAT="json")
    try:
        wait_for(lambda: len(running.workers()) == 2, 60, "two workers")
        assert requests.post(f"{running.url}/embed", json={"texts": ["one"]}, timeout=60).ok
    finally:
        assert running.stop() == 0
    records = [json.loads(line) for line in running.said.read_text().splitlines()]
    messages = [record["message"] for record in records]
    assert (
        f"gunicorn.error: Listening at: http://127.0.0.1:{running.port} ({running.process.pid})" in messages
    )
    assert sum("Booting worker with pid" in message for message in messages) == 2
    assert {record["process"] for record in records} == {"gunicorn", "worker"}


def test_spans_of_each_forked_worker_arrive_and_the_last_ones_at_its_end(
    tmp_path: Path, server: ModelServer
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from tests.collector import Collector

    collector = Collector()
    running = Gunicorn(tmp_path, server, **collector.environment(OTEL_BSP_SCHEDULE_DELAY="3600000"))
    try:
        wait_for(lambda: len(running.workers()) == 2, 60, "two workers")
        for number in range(40):  # on connections of their own, which the workers share
            assert requests.post(f"{running.url}/embed", json={"texts": [f"{number}"]}, timeout=60).ok
        assert collector.spans == []
    finally:
        assert running.stop() == 0
        collector.close()
    asked = collector.named("POST /embed")
    assert len({span.id for span in asked}) == len(asked) == 40
    assert len(collector.named("wire")) == 40
    assert len(collector.headers) >= 2  # from both
    assert "Traceback" not in running.said.read_text()


def test_it_takes_the_settings_and_leaves_a_given_metrics_folder_alone(
    tmp_path: Path, server: ModelServer
) -> None:
    given = tmp_path / "metrics"
    given.mkdir()
    running = Gunicorn(
        tmp_path, server, PROMETHEUS_MULTIPROC_DIR=str(given), WEB_CONCURRENCY="1", EMBEDDING_HOST="0.0.0.0",
    )  # fmt: skip
    try:
        wait_for(lambda: len(running.workers()) == 1, 60, "one worker")
        assert f"http://0.0.0.0:{running.port}" in running.said.read_text()
        assert list(running.temporary.iterdir()) == []
    finally:
        assert running.stop() == 0
    assert given.is_dir()
