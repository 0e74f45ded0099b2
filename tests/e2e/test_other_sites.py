"""A real Chromium visits another site's pages; a worker refuses the requests that they make it send."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from playwright.sync_api import Page, sync_playwright

from tests.processes import ModelServer
from tests.watching import CHROMIUM, Worker, needs_chromium

pytestmark = needs_chromium
#: The other site's name, which its owner can resolve to any address.
SITE = "evil.example"
#: Send a text to the worker as a page may without a preflight; the page cannot read the answer.
SEND = """([url, body]) => fetch(url, {method: "POST", mode: "no-cors", body}).catch(() => null)"""
READ = "(url) => fetch(url).then((answer) => answer.status)"


class Blank(BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def worker(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    running = Worker(server, tmp_path_factory.mktemp("worker"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def visited() -> Iterator[Page]:
    """A page of the other site, in a browser that resolves this name to this machine."""
    site = ThreadingHTTPServer(("127.0.0.1", 0), Blank)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", f"--host-resolver-rules=MAP {SITE} 127.0.0.1"]
        )
        page = browser.new_page()
        page.goto(f"http://{SITE}:{site.server_port}/")
        yield page
        browser.close()
    site.shutdown()


def answered(worker: Worker, route: str) -> dict[str, int]:
    """Return the number of answered requests of a route, by status."""
    text = requests.get(f"{worker.url}/metrics", timeout=30).text
    lines = [
        line for line in text.splitlines() if f'http_requests_total{{method="POST",route="{route}"' in line
    ]
    return {line.split('status="')[1][:3]: int(float(line.split()[-1])) for line in lines}


def test_requests_that_a_page_sends_without_asking_are_refused(visited: Page, worker: Worker) -> None:
    sent = '{"model": "m", "input": "a", "texts": ["a"]}'
    for route in ("/api/embed", "/embed", "/v1/embeddings"):
        visited.evaluate(SEND, [worker.url + route, sent])
        assert answered(worker, route) in ({"403": 1}, {})  # empty if the browser itself blocked it


def test_a_page_whose_name_leads_to_the_worker_reads_nothing_of_it(visited: Page, worker: Worker) -> None:
    port = worker.url.rpartition(":")[2]
    for path in ("/settings", "/metrics", "/health", "/dashboard"):
        answer = visited.goto(f"http://{SITE}:{port}{path}")
        assert answer is not None
        assert answer.status == 421
        assert "EMBEDDING_ALLOWED_HOSTS" in visited.content()
    own = visited.goto(f"{worker.url}/docs")
    assert own is not None
    assert own.status == 200
    assert visited.evaluate(READ, f"{worker.url}/settings") == 200
