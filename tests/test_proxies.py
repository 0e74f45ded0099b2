"""A proxy named in the environment is for the internet: requests to this machine bypass it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embedshare.errors import SearchFailed
from embedshare.ipc import authkey
from embedshare.operate.processes import ask_worker
from embedshare.settings import ServerSettings, Settings, WebSettings
from embedshare.websearch.engines import SearXNG
from tests.processes import ROOT, environment, run_python


class Site:
    """A site that answers each GET with `answer` and records the requests."""

    def __init__(self, answer: object) -> None:
        seen = self.seen = []  # type: list[tuple[str, str | None]]
        body = json.dumps(answer).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append((self.path, self.headers["Authorization"]))
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A proxy that the environment names for every scheme."""
    proxy = Site({"status": "from the proxy", "results": [{"url": "http://proxied.example/"}]})
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield proxy
    proxy.close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site({"status": "ok", "results": [{"url": "http://found.example/"}]})
    yield site
    site.close()


def test_a_worker_is_asked_directly_and_no_proxy_is_sent_the_operators_key(
    proxy: Site, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    settings = Settings(server=ServerSettings(authkey="k" * 32), web=WebSettings(api_keys="required"))
    assert ask_worker(settings, "127.0.0.1", site.port, "/load", 5.0)["status"] == "ok"
    key = authkey.operator_key(b"k" * 32)
    assert site.seen == [("/load", f"Bearer {key}")]
    assert proxy.seen == []


def test_the_health_check_of_a_container_asks_its_worker_directly(proxy: Site, site: Site) -> None:
    check = [sys.executable, str(ROOT / "deploy" / "health.py"), "worker"]
    assert subprocess.run(check, env=environment(PORT=str(site.port)), timeout=60).returncode == 0
    assert (site.seen, proxy.seen) == ([("/health", None)], [])


def test_the_integration_test_asks_a_service_of_this_machine_directly(proxy: Site, site: Site) -> None:
    program = "import try_embedding; try_embedding.is_well()"
    env = environment(EMBEDDING_SERVICE_URL=f"http://localhost:{site.port}")
    run_python(program, {**env, "PYTHONPATH": str(ROOT / "deploy")})
    assert (site.seen, proxy.seen) == ([("/health", None)], [])


def test_a_searxng_of_this_machine_is_asked_directly_and_one_elsewhere_through_the_proxy(
    proxy: Site, site: Site
) -> None:
    found = SearXNG(f"http://localhost:{site.port}").search("a query", 3)
    assert [one.url for one in found] == ["http://found.example/"]
    assert proxy.seen == []
    found = SearXNG("http://search.example").search("a query", 3)
    assert [one.url for one in found] == ["http://proxied.example/"]
    assert len(proxy.seen) == 1


@pytest.mark.parametrize("host", ["10.255.255.1", "searxng", "search.localhost", "[fd00::1]"])
def test_an_internal_searxng_is_never_asked_through_a_proxy(
    proxy: Site, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[object] = []

    def connect(_: object, address: object) -> None:
        connected.append(address)
        raise OSError("unreachable")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(SearchFailed):
        SearXNG(f"http://{host}:8080").search("a query", 3)
    assert ("127.0.0.1", proxy.port) not in connected
