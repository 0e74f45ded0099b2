"""The files and figures of the live page, without a browser."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient

from embeddingClient import EmbeddingClient
from embedshare.web import errors, routes
from embedshare.web.pages import dashboard
from tests.processes import ModelServer, free_port, wait_for
from tests.web.conftest import Worker


def browser_of(model: dashboard.Observed, supervised: Any = list) -> FlaskClient:
    app = routes.Application("test", static_folder=None)
    errors.register(app)
    app.register_blueprint(dashboard.blueprint(model, supervised))
    return app.test_client()


@pytest.mark.parametrize("name", ["dashboard", "search", "sessions.html"])
def test_a_page_allows_nothing_but_its_own_files_and_each_of_them_is_served(
    worker: Worker, name: str
) -> None:
    page = requests.get(f"{worker.url}/{name}", timeout=30)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "style-src 'self';" in policy
    named = set(re.findall(r'(?:src|<link [^>]*href)="([^"]+)"', page.text))
    assert len(named) >= 5
    for name in named:
        answer = requests.get(f"{worker.url}/{name}", timeout=30)
        assert answer.status_code == 200, name
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[name.rpartition(".")[2]]
        assert answer.headers["Content-Type"].startswith(kind)
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|https?://", page.text)


@pytest.mark.parametrize("name", ["dashboard", "search", "sessions.html", "dashboard/static/page.js"])
def test_what_has_not_changed_is_not_sent_again(worker: Worker, name: str) -> None:
    first = requests.get(f"{worker.url}/{name}", timeout=30)
    again = requests.get(f"{worker.url}/{name}", headers={"If-None-Match": first.headers["ETag"]}, timeout=30)
    assert first.content
    assert (first.headers["Cache-Control"], again.status_code, again.content) == ("no-cache", 304, b"")


@pytest.mark.parametrize(
    "name", ["dashboard.html", "VENDORED.md", "..%2fdashboard.py", "page.js%00", "none.js"]
)
def test_no_other_file_is_served(worker: Worker, name: str) -> None:
    answer = requests.get(f"{worker.url}/dashboard/static/{name}", timeout=30)
    assert (answer.status_code, answer.json()["type"]) == (404, "Not Found")


def test_the_data_are_the_server_s_figures_its_processes_and_their_memory(
    worker: Worker, server: ModelServer, model: EmbeddingClient
) -> None:
    model.encode("one call")
    before = requests.get(f"{worker.url}/dashboard/data", timeout=30).json()
    for _ in range(3):
        requests.post(f"{worker.url}/embed", json={"texts": ["one", "two"]}, timeout=30).raise_for_status()
    after = requests.get(f"{worker.url}/dashboard/data", timeout=30).json()
    assert after["time"] > before["time"]
    assert after["server"]["total_requests"] - before["server"]["total_requests"] >= 3
    assert after["worker"]["calls"] - before["worker"]["calls"] == 3
    assert sum(after["server"]["histograms"]["total_ms"]["counts"]) >= 4
    assert server.process is not None
    listed = {each["pid"]: each for each in after["processes"]}
    assert {server.process.pid, worker.process.pid} < set(listed)
    assert listed[server.process.pid]["port"] == server.port
    assert listed[worker.process.pid]["state"] == "connected"
    memory, callers = after["memory"], after["server"]["callers"]
    of_callers = sum(each["memory_mb"] for each in callers)
    assert memory["processes"] == len(callers)
    assert memory["shared_mb"] == pytest.approx(of_callers + after["server"]["memory_mb"])
    assert memory["unshared_mb"] == pytest.approx(of_callers + len(callers) * after["server"]["model_mb"])


def test_the_data_count_this_worker_s_requests_and_errors_without_checks_and_pages(worker: Worker) -> None:
    def http() -> dict[str, Any]:
        return dict(requests.get(f"{worker.url}/dashboard/data", timeout=30).json()["http"])

    before = http()
    for body in ({"texts": ["one"]}, {"texts": 1}, {"texts": ["two"]}):
        requests.post(f"{worker.url}/embed", json=body, timeout=30)
    assert requests.post(f"{worker.url}/search", json={"query": "a failure"}, timeout=30).status_code == 502
    for path in (
        "/health",
        "/embedding/health",
        "/load",
        "/metrics",
        "/dashboard",
        "/dashboard/static/page.js",
    ):
        assert requests.get(f"{worker.url}{path}", timeout=30).ok
    after = http()
    assert after["since"] == before["since"]
    assert {name: after[name] - before[name] for name in ("answered", "failed", "refused")} == {
        "answered": 4, "failed": 1, "refused": 1,
    }  # fmt: skip


def test_while_nobody_answers_the_data_say_why_and_tell_of_this_worker(server: ModelServer) -> None:
    nobody = {"EMBEDDING_SERVER_PORT": str(free_port()), "EMBEDDING_FALLBACK": "none"}
    with server.client(**nobody) as client:
        data = browser_of(client).get("/dashboard/data").json
    assert data["server"] is None
    assert nobody["EMBEDDING_SERVER_PORT"] in data["error"]
    assert data["worker"]["calls"] == 0
    assert [each["name"] for each in data["processes"]] == ["this worker"]
    assert data["memory"] == {"processes": 0, "shared_mb": None, "unshared_mb": None, "model_mb": None}


def test_a_supervisor_s_processes_come_first_and_then_who_else_is_connected(
    model: EmbeddingClient, server: ModelServer
) -> None:
    assert server.process is not None
    known = [{"name": "worker-1", "pid": 1, "port": 5000, "state": "ready", "uptime_s": 2.5, "restarts": 3,
              "memory_mb": None, "calls": None}]  # fmt: skip
    served = {"name": "model-server", "pid": server.process.pid, "of_a_later_version": 1}
    model.encode("one call")
    found = browser_of(model, lambda: [*known, served]).get("/dashboard/data").json["processes"]
    assert found[:1] == known
    assert [each["name"] for each in found[1:3]] == ["model-server", "this worker"]
    assert found[1]["calls"] > 0  # the server's own figure, which the supervisor lacks


class Hanging:
    """A model whose server accepts a request and does not answer."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = threading.Event()

    def stats(self) -> dict[str, Any]:
        self.asked += 1
        self.go_on.wait(60)
        return {"pid": 7, "client": self.client_stats(), "server_address": "localhost:1", "uptime": 1.0,
                "memory_mb": None, "model_mb": None, "total_requests": 0, "callers": []}  # fmt: skip

    def models(self, timeout: float | None = None) -> list[dict[str, Any]]:
        return []

    def client_stats(self) -> dict[str, Any]:
        return {"pid": 8, "state": "connected", "uptime_s": 1.0, "memory_mb": None, "calls": 0}


def test_a_server_that_hangs_is_asked_once_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "PATIENCE_S", 0.1)
    model = Hanging()
    browser = browser_of(model)
    for _ in range(3):
        data = browser.get("/dashboard/data").json
        assert (data["server"], data["error"]) == (None, "no answer within 0.1 s from the model server")
        assert data["processes"][0]["state"] == "waiting"
    assert model.asked == 1
    model.go_on.set()
    data = wait_for(lambda: (found := browser.get("/dashboard/data").json)["server"] and found, 30)
    assert [each["pid"] for each in data["processes"]] == [7, 8]
    assert data["memory"]["shared_mb"] is None
