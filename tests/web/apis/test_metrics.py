"""The metrics that Prometheus reads from web workers: one process, and several that share a port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from flask.testing import FlaskClient

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.client.failover_policy import State
from embedshare.settings import Settings
from embedshare.web.apis.metrics import STATES
from tests.processes import SRC, ModelServer, free_port, wait_for
from tests.telemetry.scraped import Scrape


@pytest.fixture
def browser(model: EmbeddingClient) -> Iterator[FlaskClient]:
    with create_app(model, Settings()).test_client() as client:
        yield client


def scraped(browser: FlaskClient) -> Scrape:
    response = browser.get("/metrics")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(response.text)


def test_requests_are_counted_by_route_method_and_status(browser: FlaskClient) -> None:
    for _ in range(3):
        assert browser.post("/embed", json={"texts": ["a text"]}).status_code == 200
    browser.post("/embed", json={"texts": 7})
    browser.get("/embed")
    browser.get("/health")
    found = scraped(browser)
    name = "embedshare_http_requests_total"
    assert found(name, route="/embed", method="POST", status="200") == 3
    assert found(name, route="/embed", method="POST", status="400") == 1
    assert found(name, route="/health", method="GET", status="200") == 1
    assert found("embedshare_http_request_seconds_count", route="/embed") == 4
    assert 0 < found("embedshare_http_request_seconds_sum", route="/embed") < 60
    assert found("embedshare_http_requests_in_flight") == 1  # the scrape


def test_a_summary_comes_as_json_to_who_asks_for_it(browser: FlaskClient) -> None:
    for texts in (["a text"], ["two", "texts"]):
        assert browser.post("/embed", json={"texts": texts}).status_code == 200
    browser.post("/embed", json={"texts": 7})
    response = browser.get("/metrics", headers={"Accept": "application/json"})
    assert response.headers["Content-Type"] == "application/json"
    summary = response.json
    assert summary is not None
    assert set(summary) == {
        "requests_total", "requests_failed", "success_rate", "embeddings_generated", "avg_latency_ms",
        "model_reloads", "model_reload_failures", "uptime_seconds",
    }  # fmt: skip
    assert (summary["requests_total"], summary["requests_failed"], summary["success_rate"]) == (3, 0, 1.0)
    assert summary["embeddings_generated"] == 3
    assert 0 < summary["avg_latency_ms"] < 60_000
    assert 0 < summary["uptime_seconds"] < 3600
    assert (summary["model_reloads"], summary["model_reload_failures"]) == (0, 0)
    for accepted in ("*/*", "text/html,*/*;q=0.8", "application/openmetrics-text;version=1.0.0,*/*;q=0.1"):
        text = browser.get("/metrics", headers={"Accept": accepted})
        assert text.headers["Content-Type"].startswith("text/plain")


def test_strangers_words_make_no_labels(browser: FlaskClient) -> None:
    for number in range(20):
        browser.get(f"/no/such/page/{number}")
        browser.open("/health", method=f"WORD{number}")
    found = scraped(browser)
    name = "embedshare_http_requests_total"
    assert found.label_values(name, "route") == {"unknown"}
    assert found.label_values(name, "method") == {"GET", "other"}
    assert found(name, route="unknown", method="GET", status="404") == 20
    assert found(name, route="unknown", method="other", status="405") == 20


def test_the_client_s_calls_are_counted_by_outcome_and_timed_by_stage(browser: FlaskClient) -> None:
    for _ in range(4):
        browser.post("/embed", json={"texts": ["a text", "another"]})
    found = scraped(browser)
    calls = "embedshare_client_calls_total"
    assert found(calls, method="encode", outcome="ok", source="server") == 4
    for stage in ("tokenize", "queue", "compute", "wire", "total"):
        assert found("embedshare_client_call_seconds_count", stage=stage) == 4
    total = found("embedshare_client_call_seconds_sum", stage="total")
    assert total == pytest.approx(found("embedshare_client_call_seconds_sum") / 2)
    assert found("embedshare_client_state", state="connected") == 1
    assert found("embedshare_client_state") == 1
    assert found("embedshare_worker_processes") == 1
    assert found("embedshare_worker_memory_bytes") == pytest.approx(
        psutil.Process().memory_info().rss, rel=0.1
    )
    assert found("embedshare_worker_start_time_seconds") > 1e9


def test_every_state_of_the_client_is_shown() -> None:
    assert set(STATES) == {state.value for state in State}


def test_a_server_that_goes_and_comes_back_can_be_seen(tmp_path: Path) -> None:
    running = ModelServer(tmp_path).start()
    with running.client() as model, create_app(model, Settings()).test_client() as browser:
        browser.post("/embed", json={"texts": ["before"]})
        running.kill()
        assert browser.post("/embed", json={"texts": ["meanwhile"]}).status_code == 200
        found = scraped(browser)
        assert found("embedshare_client_state", state="falling back") == 1
        assert found("embedshare_client_state", state="connected") == 0
        assert found("embedshare_client_calls_total", outcome="ok", source="local") >= 1
        assert found("embedshare_client_fallbacks_total") == 1
        running.start()
        wait_for(lambda: scraped(browser)("embedshare_client_returns_total") == 1, what="the return")
        assert scraped(browser)("embedshare_client_state", state="connected") == 1
    running.stop()


def test_a_call_that_nobody_answers_is_counted_by_its_error(tmp_path: Path) -> None:
    with (
        ModelServer(tmp_path).client(EMBEDDING_FALLBACK="none") as away,
        create_app(away, Settings()).test_client() as browser,
    ):
        assert browser.post("/embed", json={"texts": ["a"]}).status_code == 503
        found = scraped(browser)
    assert found("embedshare_client_calls_total", outcome="ServerUnavailable", source="nobody") == 1
    assert found("embedshare_http_requests_total", route="/embed", status="503") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn does not run on Windows")
@pytest.mark.parametrize("preload", [False, True], ids=["each loads", "preload"])
def test_three_gunicorn_processes_give_one_sum_whichever_answers(
    server: ModelServer, tmp_path: Path, preload: bool
) -> None:
    port = free_port()
    environment = server.environment(EMBEDDING_FALLBACK="none", PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "m"))
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(
        "def child_exit(server, worker):\n"
        "    from prometheus_client import multiprocess\n"
        "    multiprocess.mark_process_dead(worker.pid)\n"
    )
    said = tmp_path / "gunicorn.log"
    with said.open("wb") as output:
        gunicorn = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", str(config), "--workers", "3", "--threads", "8",
             "--chdir", str(SRC), "--bind", f"127.0.0.1:{port}", *["--preload"] * preload,
             "app:create_app()"],
            env=environment, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def embed(number: int) -> int:
        return requests.post(f"{url}/embed", json={"texts": [f"text {number}"]}, timeout=60).status_code

    def scrape() -> Scrape:
        return Scrape(requests.get(f"{url}/metrics", timeout=60).text)

    def summary() -> dict[str, float]:
        found: dict[str, float] = requests.get(
            f"{url}/metrics", headers={"Accept": "application/json"}, timeout=60
        ).json()
        return found

    def embedded(found: Scrape) -> tuple[float, float]:
        """Return the requests and their vectors: requests in one batch are one call of the client."""
        return found("embedshare_http_requests_total", route="/embed", status="200"), found(
            "embedshare_client_embeddings_total"
        )

    try:
        wait_for(lambda: said.read_bytes().count(b"Booting worker") == 3, 60, "three processes")
        with ThreadPoolExecutor(12) as threads:
            assert set(threads.map(embed, range(120))) == {200}
            # Each process answers some of these scrapes, and each reports all 120.
            sums = list(threads.map(lambda _: embedded(scrape()), range(24)))
            asked = threads.map(lambda _: summary()["embeddings_generated"], range(12))
            assert set(asked) == {120}
        assert set(sums) == {(120, 120)}
        sent = 120

        def all_in_touch() -> bool:
            """Send 12 requests; return whether all three processes are connected, the last one included."""
            nonlocal sent
            with ThreadPoolExecutor(12) as threads:
                sent += len(list(threads.map(embed, range(12))))
            return scrape()("embedshare_client_state", state="connected") == 3

        wait_for(all_in_touch, 60, "all in touch")
        children = psutil.Process(gunicorn.pid).children()
        assert scrape()("embedshare_worker_processes") == len(children) == 3
        resident = sum(child.memory_info().rss for child in children)
        assert scrape()("embedshare_worker_memory_bytes") == pytest.approx(resident, rel=0.2)
        os.kill(children[0].pid, signal.SIGKILL)
        # The killed process's counts remain; its gauges do not, and a new process replaces it.
        wait_for(lambda: said.read_bytes().count(b"Booting worker") == 4, 60, "the fourth process")
        wait_for(lambda: scrape()("embedshare_worker_processes") <= 3, 30, "the end of its gauges")
        assert embedded(scrape()) == (sent, sent)
    finally:
        gunicorn.terminate()
        gunicorn.wait(30)
