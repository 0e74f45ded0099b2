"""The database keeps a new `host` or `port` at once. The service manager's workers apply it in rolling
restarts, during which no call behind a proxy fails."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

import service_manager
from embedshare.database.database import Database
from embedshare.operate.processes import Place
from embedshare.settings import Settings
from embedshare.settings_store.repository import SettingsRepository
from tests.deploy import nginx as nginx_program
from tests.deploy.nginx import Load, Nginx
from tests.processes import ROOT, Services, environment, free_port, wait_for

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is this machine's on Linux alone")
needs_nginx = pytest.mark.skipif(nginx_program.PROGRAM is None, reason="nginx is not installed")


class Site:
    """Services with their settings in a database; `first` is the first worker's current port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first = free_port(in_a_row=2)
        self.given = {
            "EMBEDDING_SERVER_PORT": str(free_port()), "EMBEDDING_AUTHKEY_FILE": str(folder / "authkey"),
            "EMBEDDING_USE_DB_SETTINGS": "true", "EMBEDDING_FALLBACK": "none",
            "EMBEDDING_API_KEYS": "off", "EMBEDDING_WEB_SEARCH": "false",  # so that any host is allowed
        }  # fmt: skip
        self.store(port=self.first)
        self.services = Services(folder, "--workers", "2", **self.given)

    def store(self, **values: Any) -> None:
        """Write settings to the database without a worker, as an operator may."""
        database = Database.open(Settings.load(self.given, dotenv=self.folder / "no.env"), self.folder)
        with closing(database):
            SettingsRepository(database).change(values, "an operator")

    def post(self, key: str, value: Any) -> requests.Response:
        url = f"http://127.0.0.1:{self.first}/settings"
        return requests.post(url, json={"key": key, "value": value}, timeout=60)

    def command(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, str(ROOT / "service_manager.py"), *arguments], cwd=self.folder, timeout=120,
            env=environment(**self.given), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def have_moved(self, first: int, workers: int = 2, host: str = "127.0.0.1") -> bool:
        """Return whether exactly this many workers run, and each answers at its port from `first` on."""
        there = all(answers(first + number, host) for number in range(workers))
        return there and len(self.services.children("app.py")) == workers

    @contextmanager
    def loaded(self, folder: Path, *ports: int) -> Iterator[Load]:
        """Callers behind nginx, which lists these ports; fails if a call fails."""
        front = Nginx(folder / "nginx", list(ports)).start()
        try:
            with Load(front.url).running() as load:
                load.more(20)
                yield load
                load.more(20)
        finally:
            front.stop()
        assert load.failures == []
        assert {status for status, _ in front.answered()} == {200}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    running = Site(tmp_path_factory.mktemp("site"))
    running.services.wait_until_running()
    yield running
    running.services.process.send_signal(signal.SIGTERM)
    assert running.services.process.wait(60) == 0, running.services.output
    for log in (running.folder / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(), log.read_text()


def answers(port: int, host: str = "127.0.0.1") -> bool:
    try:
        return requests.get(f"http://{host}:{port}/health", timeout=5).json()["status"] == "ok"
    except requests.RequestException:
        return False


@needs_nginx
@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.long)])
def test_a_new_port_is_kept_and_taken_without_a_call_that_fails(
    site: Site, tmp_path: Path, workers: int
) -> None:
    site.command("scale", str(workers))
    old, new = site.first, free_port(in_a_row=2)
    with site.loaded(tmp_path, old, old + 1, new, new + 1):
        answer = site.post("port", new)
        assert (answer.status_code, answer.json()["settings"]["port"]) == (200, new), answer.text
        assert "takes effect at the next restart" in answer.json()["notes"]["port"]
        wait_for(lambda: site.have_moved(new, workers), 60, "the move")
    site.first = new
    assert not any(answers(old + number) for number in range(2))
    site.command("scale", "2")


@needs_linux
@needs_nginx
def test_a_host_in_the_database_is_taken_with_the_ports_kept(site: Site, tmp_path: Path) -> None:
    with site.loaded(tmp_path, site.first, site.first + 1):
        site.store(host="0.0.0.0")
        wait_for(lambda: site.have_moved(site.first, host="127.0.0.2"), 60, "the new host")


def test_a_port_that_is_taken_leaves_the_workers_where_they_are(site: Site) -> None:
    new = free_port(in_a_row=2)
    refused = site.post("host", "203.0.113.9")
    assert (refused.status_code, "no worker can listen at 203.0.113.9" in refused.json()["error"]) == (
        422,
        True,
    )
    with closing(socket.create_server(("127.0.0.1", new + 1))):
        assert site.post("port", new).status_code == 200
        wait_for(lambda: "Could not move every worker" in site.services.output, 30, "the refusal")
        assert f"port {new + 1} of " in site.services.output
        assert site.have_moved(site.first)
    site.command("restart")
    assert site.have_moved(new)
    site.first = new


def test_a_port_of_the_command_line_stands_above_the_database_s() -> None:
    stored = {"host": "0.0.0.0", "port": 6000}
    assert service_manager._place(Settings(), None, stored) == Place("0.0.0.0", 6000)
    assert service_manager._place(Settings(), 7000, stored) == Place("0.0.0.0", 7000)
    assert service_manager._place(Settings(), None, {}) == Place("127.0.0.1", 5000)
