"""deploy/nginx: a real nginx before three real workers. One worker is killed, and one stops for good."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import requests

from embedshare.settings import Settings
from tests.deploy import nginx as nginx_program
from tests.deploy.nginx import ADDRESS, Load, Nginx
from tests.processes import ROOT, Services, environment, free_port, wait_for
from tests.websearch import site as site_handlers

pytestmark = pytest.mark.skipif(nginx_program.PROGRAM is None, reason="nginx is not installed")


@dataclass
class Site:
    """Two supervised workers, a third that is not restarted, and nginx before them."""

    nginx: Nginx
    services: Services
    lone: subprocess.Popen[bytes]
    ports: list[int]
    environment: dict[str, str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    first, server, lone_port = free_port(in_a_row=2), free_port(), free_port()
    given = {
        "EMBEDDING_SERVER_PORT": str(server),
        "EMBEDDING_AUTHKEY_FILE": str(folder / "authkey"),
        "EMBEDDING_FALLBACK": "none",
    }
    services = Services(folder, "--workers", "2", "--port", str(first), **given)
    services.wait_until_running()
    with (folder / "lone.log").open("wb") as log:
        lone = subprocess.Popen(
            [sys.executable, str(ROOT / "src" / "app.py")],
            env=environment(**given, PORT=str(lone_port)), cwd=folder, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    nginx = Nginx(folder / "nginx", [first, first + 1, lone_port])
    try:
        wait_for(lambda: _listens(lone_port), 60, "the third worker")
        nginx.start()
        yield Site(nginx, services, lone, [first, first + 1, lone_port], environment(**given))
    finally:
        nginx.stop()
        lone.kill()
        lone.wait()
        services.process.send_signal(signal.SIGTERM)
        services.process.wait(60)


def test_nginx_finds_no_fault_in_the_files_and_warns_of_nothing(tmp_path: Path) -> None:
    said = Nginx(tmp_path / "nginx", [1, 2, 3]).check()
    assert "test is successful" in said
    assert "[warn]" not in said
    assert "[emerg]" not in said


def test_every_worker_gets_its_share(site: Site) -> None:
    at = len(site.nginx.answered())
    with Load(site.nginx.url).running() as load:
        load.more(120)
    assert load.failures == []
    answers = site.nginx.answered(at)
    assert {status for status, _ in answers} == {200}
    counts = {port: sum(tried == [port] for _, tried in answers) for port in site.ports}
    assert min(counts.values()) >= 10, counts


def test_a_worker_that_is_killed_and_started_again_fails_no_request(site: Site) -> None:
    with Load(site.nginx.url).running() as load:
        for victim in (site.ports[0], site.ports[1], site.ports[0]):
            load.more(20)
            process = _who_listens(site, victim)
            process.kill()
            process.wait(30)
            wait_for(lambda port=victim: _listens(port), 60, "the restart")
            at = len(site.nginx.answered())
            wait_for(lambda at=at, port=victim: (200, [port]) in site.nginx.answered(at), 60, "its return")
    assert load.failures == []
    assert load.good >= 60


def test_workers_that_are_restarted_one_after_another_fail_no_request(site: Site) -> None:
    before = {child.pid for child in site.services.children("app.py")}
    with Load(site.nginx.url).running() as load:
        load.more(20)
        done = subprocess.run(
            [sys.executable, str(ROOT / "service_manager.py"), "restart"],
            env=site.environment, cwd=site.services.folder, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        at = len(site.nginx.answered())
        for port in site.ports[:2]:
            wait_for(lambda port=port: (200, [port]) in site.nginx.answered(at), 60, "its return")
    assert load.failures == []
    after = {child.pid for child in site.services.children("app.py")}
    assert len(after) == 2
    assert not after & before


def test_a_worker_that_goes_away_for_good_fails_no_request(site: Site) -> None:
    gone = site.ports[2]
    with Load(site.nginx.url).running() as load:
        load.more(20)
        site.lone.send_signal(signal.SIGTERM)
        assert site.lone.wait(60) == 0
        at = len(site.nginx.answered())
        load.more(150)
    assert load.failures == []
    answers = site.nginx.answered(at)
    assert {tried[-1] for _, tried in answers} == set(site.ports[:2])
    asked_in_vain = sum(gone in tried for _, tried in answers)
    assert asked_in_vain < len(answers) / 2  # nginx skips it, and does not try it for each request


def test_a_request_keeps_its_id_or_is_given_one(site: Site) -> None:
    given = requests.get(f"{site.nginx.url}/health", headers={"X-Request-ID": "order-66:a.b_c"}, timeout=10)
    assert given.headers["X-Request-ID"] == "order-66:a.b_c"
    made = [requests.get(f"{site.nginx.url}/health", timeout=10).headers["X-Request-ID"] for _ in range(2)]
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in made)
    assert made[0] != made[1]
    for unfit in ('a "quoted" id', "x" * 129):
        answer = requests.get(f"{site.nginx.url}/health", headers={"X-Request-ID": unfit}, timeout=10)
        assert len(answer.headers["X-Request-ID"]) == 32


def test_every_answer_has_the_security_headers_once(site: Site) -> None:
    for path in ("/health", "/embedding/health", "/embedding/stats", "/nowhere"):
        raw = requests.get(f"{site.nginx.url}{path}", timeout=10).raw.headers
        for name, value in (
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
        ):
            assert raw.getlist(name) == [value], (path, name)
        assert "frame-ancestors 'none'" in raw.getlist("Content-Security-Policy")
        assert len(raw.getlist("X-Request-ID")) == 1
        assert raw["Server"] == "nginx"  # without a version


@pytest.mark.parametrize(
    "path",
    [
        "/embedding/stats",
        "/settings",
        "/settings/bulk",
        "/metrics",
        "/dashboard",
        "/dashboard/data",
        "/metrics/",
        "//metrics",
    ],
)
def test_what_is_for_operators_is_shown_to_local_networks_alone(site: Site, path: str) -> None:
    for stranger in ("203.0.113.7", "172.32.0.1", "2001:db8::1"):
        answer = requests.get(f"{site.nginx.url}{path}", headers={ADDRESS: stranger}, timeout=10)
        assert answer.status_code == 403
        assert answer.json()["type"] == "Forbidden"
    for local in ("127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "::1", "fd00::1"):
        answer = requests.get(f"{site.nginx.url}{path}", headers={ADDRESS: local}, timeout=10)
        assert answer.status_code != 403


def test_workers_without_keys_see_the_caller_s_host_and_port_and_refuse_other_sites(site: Site) -> None:
    port = site.nginx.port

    def status(**headers: str) -> int:
        sent = {"texts": ["a"]}
        return requests.post(f"{site.nginx.url}/embed", json=sent, headers=headers, timeout=30).status_code

    assert status(Host=f"localhost:{port}", Origin=f"http://localhost:{port}") == 200
    assert status(Host=f"localhost:{port}", Origin=f"http://localhost:{port + 1}") == 403
    assert status(Host=f"evil.example:{port}", Origin=f"http://evil.example:{port}") == 421


@pytest.mark.parametrize("path", ["/health", "/embedding/health", "/openapi.json"])
def test_the_rest_is_shown_to_all(site: Site, path: str) -> None:
    assert requests.get(f"{site.nginx.url}{path}", headers={ADDRESS: "203.0.113.7"}, timeout=10).ok


def test_a_body_over_the_limit_is_refused_unread_in_the_words_of_the_workers(site: Site) -> None:
    limit = Settings().server.max_message_bytes
    assert _announce(site, limit) == b"HTTP/1.1 100 Continue\r\n\r\n"
    refused = _announce(site, limit + 1)
    assert refused.startswith(b"HTTP/1.1 413 ")
    assert b"Content-Type: application/json" in refused
    assert b'"type":"TooLarge"' in refused


class Dies(site_handlers.Quiet):
    """A worker that reads a request and ends before it answers."""

    read: ClassVar[list[str]] = []

    def do_POST(self) -> None:  # noqa: N802
        self.rfile.read(int(self.headers["Content-Length"]))
        Dies.read.append(self.path)
        self.close_connection = True


class Answers(site_handlers.Quiet):
    """A worker that answers."""

    def do_POST(self) -> None:  # noqa: N802
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send(b"{}", "application/json")


def test_an_addition_of_documents_is_not_sent_again_where_a_worker_may_have_carried_it_out(
    tmp_path: Path,
) -> None:
    with ExitStack() as workers:
        ports = [workers.enter_context(site_handlers.serving(Dies)) for _ in range(3)]
        front = Nginx(tmp_path / "nginx", ports).start()
        workers.callback(front.stop)
        documents = f"/index/{'0' * 32}/documents"
        for path, times in (("/embed", 3), ("/indexed", 3), ("/index", 1), (documents, 1)):
            Dies.read.clear()
            assert sent(front, path) == 502
            assert Dies.read == [path] * times


def test_an_addition_of_documents_goes_to_the_next_worker_where_the_first_is_not_there(
    tmp_path: Path,
) -> None:
    with site_handlers.serving(Answers) as port:
        front = Nginx(tmp_path / "nginx", [free_port(), free_port(), port]).start()
        try:
            assert [sent(front, "/index") for _ in range(6)] == [200] * 6
        finally:
            front.stop()
        assert max(len(tried) for _, tried in front.answered()) > 1


def sent(front: Nginx, path: str) -> int:
    return requests.post(f"{front.url}{path}", json={"documents": ["a"]}, timeout=30).status_code


def test_where_no_worker_is_the_answer_is_json(tmp_path: Path) -> None:
    alone = Nginx(tmp_path / "nginx", [free_port() for _ in range(3)]).start()
    try:
        answer = requests.post(f"{alone.url}/embed", json={"texts": ["a"]}, timeout=30)
    finally:
        alone.stop()
    assert answer.status_code == 502
    assert answer.json() == {"error": "no web worker answered", "type": "Bad Gateway"}
    assert len(alone.answered()[0][1]) == 3  # nginx tried each worker


def _announce(site: Site, size: int) -> bytes:
    """Return nginx's answer to a request that announces a body of `size` bytes, before any is sent."""
    with socket.create_connection(("127.0.0.1", site.nginx.port), timeout=60) as sock:
        sock.sendall(
            b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % size
        )
        return sock.recv(65536)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _who_listens(site: Site, port: int) -> psutil.Process:
    for child in site.services.children("app.py"):
        if child.environ().get("PORT") == str(port):
            return child
    raise AssertionError(f"no worker at {port} among {os.getpid()}'s services")
