"""The service manager's workers move to another port or host that the settings in a database name, while they
serve: all of them within two seconds, and who is started later listens there."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from embedshare.database.database import Database
from embedshare.database.stored import SettingsStore
from embedshare.settings import Settings
from tests.processes import ROOT, Services, environment, free_port, wait_for

#: A change has to hold in every worker within this time.
WITHIN_S = 2.0
WORKERS = 3
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is this machine's on Linux alone")


class Site:
    """Services whose settings are in a database; `first` is the port that the first worker has now."""

    def __init__(self, folder: Path, first: int, *arguments: str) -> None:
        self.folder = folder
        self.first = first
        self.given = {
            "EMBEDDING_SERVER_PORT": str(free_port()), "EMBEDDING_AUTHKEY_FILE": str(folder / "authkey"),
            "EMBEDDING_USE_DB_SETTINGS": "true", "EMBEDDING_FALLBACK": "none",
            "EMBEDDING_API_KEYS": "off", "EMBEDDING_WEB_SEARCH": "false",  # so that the host may be any
        }  # fmt: skip
        if not arguments:
            self.store(first)
        self.services = Services(folder, "--workers", str(WORKERS), *arguments, **self.given)

    def store(self, port: int) -> None:
        """Put the port into the database past every worker, as an operator may."""
        database = Database.open(Settings.load(self.given, dotenv=self.folder / "no.env"), self.folder)
        with closing(database):
            SettingsStore(database).change({"port": port}, "an operator")

    def post(self, key: str, value: Any, worker: int = 1) -> requests.Response:
        url = f"http://127.0.0.1:{self.first + worker - 1}/settings"
        return requests.post(url, json={"key": key, "value": value}, timeout=60)

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, str(ROOT / "service_manager.py"), *arguments], cwd=self.folder, timeout=120,
            env=environment(**self.given), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        self.services.process.send_signal(signal.SIGTERM)
        assert self.services.process.wait(60) == 0, self.services.output
        for log in (self.folder / "logs").glob("*.log"):
            assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    running = Site(tmp_path_factory.mktemp("site"), free_port(in_a_row=WORKERS + 2))
    running.services.wait_until_running()
    yield running
    running.stop()


def answers(port: int, host: str = "127.0.0.1") -> bool:
    try:
        return requests.get(f"http://{host}:{port}/health", timeout=5).json()["status"] == "ok"
    except requests.RequestException:
        return False


def embeds(port: int) -> bool:
    answer = requests.post(f"http://127.0.0.1:{port}/embed", json={"texts": ["here?"]}, timeout=60)
    return answer.status_code == 200


def all_answer(first: int, host: str = "127.0.0.1") -> bool:
    return all(answers(first + number, host) for number in range(WORKERS))


def seconds_until(condition: Callable[[], bool]) -> float:
    began = time.monotonic()
    wait_for(condition, 20)
    return time.monotonic() - began


def test_all_workers_move_within_two_seconds_and_what_was_asked_before_is_answered(site: Site) -> None:
    old, new = site.first, free_port(in_a_row=WORKERS + 2)
    stop, failures, calls = threading.Event(), [], 0

    def ask() -> None:
        """Calls on a new connection each, to where the third worker is; it may have just left."""
        nonlocal calls
        while not stop.is_set():
            for port in (old + 2, new + 2):
                try:
                    answer = requests.post(
                        f"http://127.0.0.1:{port}/embed", json={"texts": ["a call"]}, timeout=60
                    )
                except requests.ConnectionError as error:
                    if "refused" not in str(error) and "Connection reset" not in str(error):
                        failures.append(str(error))
                else:
                    calls += 1
                    if answer.status_code != 200:
                        failures.append(answer.text)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        answer = site.post("port", new, worker=2)
        assert (answer.status_code, answer.json()["notes"]) == (200, {}), answer.text
        assert seconds_until(lambda: all_answer(new)) < WITHIN_S
        assert seconds_until(lambda: not any(answers(old + n) for n in range(WORKERS))) < WITHIN_S
    finally:
        stop.set()
        asking.join(60)
    assert failures == []
    assert calls > 0
    site.first = new


def test_ports_that_overlap_those_of_now_are_taken_in_turn(site: Site) -> None:
    assert site.post("port", site.first + 1).status_code == 200
    site.first += 1
    assert seconds_until(lambda: all_answer(site.first)) < WITHIN_S
    wait_for(lambda: not answers(site.first - 1), 10, "the end of the first port")
    assert site.post("port", site.first - 1).status_code == 200
    site.first -= 1
    assert seconds_until(lambda: all_answer(site.first)) < WITHIN_S


def test_where_one_port_of_the_range_is_taken_nobody_moves(site: Site) -> None:
    first = free_port(in_a_row=WORKERS)
    with closing(socket.create_server(("127.0.0.1", first + 2))):
        taken = site.post("port", first)
    assert taken.status_code == 422
    assert f"port {first + 2} of 127.0.0.1, for worker 3, cannot be used" in taken.json()["error"]
    beyond = site.post("port", 65534)
    assert (beyond.status_code, "end beyond port 65535" in beyond.json()["error"]) == (422, True)
    assert site.post("host", "203.0.113.9").status_code == 422
    assert requests.get(f"http://127.0.0.1:{site.first}/settings", timeout=30).json()["settings"]["port"] == (
        site.first
    )
    assert all_answer(site.first)


@needs_linux
def test_the_host_moves_with_the_port_kept(site: Site) -> None:
    assert site.post("host", "0.0.0.0").status_code == 200
    assert seconds_until(lambda: all_answer(site.first, "127.0.0.2")) < WITHIN_S
    assert site.post("host", "127.0.0.1").status_code == 200
    assert seconds_until(lambda: not any(answers(site.first + n, "127.0.0.2") for n in range(3))) < WITHIN_S
    assert all_answer(site.first)


def test_a_port_that_is_written_into_the_database_is_followed(site: Site) -> None:
    site.first, old = free_port(in_a_row=WORKERS + 2), site.first
    site.store(site.first)
    assert seconds_until(lambda: all_answer(site.first)) < WITHIN_S
    wait_for(lambda: not answers(old), 10, "the end of the old port")


def test_who_is_killed_or_started_later_listens_at_the_new_ports(site: Site) -> None:
    victims = site.services.children("app.py")
    assert len(victims) == WORKERS
    for victim in victims:
        victim.kill()
    wait_for(lambda: all_answer(site.first), 60, "the workers that are started again")
    site.command("scale", str(WORKERS + 1))
    assert embeds(site.first + WORKERS)
    reports = json.loads(site.command("status", "--json"))["processes"]
    workers = [report for report in reports if report["name"] != "model-server"]
    assert [(each["host"], each["port"]) for each in workers] == [
        ("127.0.0.1", site.first + number) for number in range(WORKERS + 1)
    ]
    assert all(each["calls_per_s"] is not None for each in workers)
    site.command("scale", str(WORKERS))


@needs_linux
def test_a_port_of_the_command_line_stands_above_the_database_s(tmp_path: Path) -> None:
    first = free_port(in_a_row=WORKERS)
    site = Site(tmp_path, first, "--port", str(first))
    site.services.wait_until_running()
    try:
        answer = site.post("port", free_port())
        assert answer.status_code == 200
        assert "started with --port" in answer.json()["notes"]["port"]
        assert site.post("host", "0.0.0.0").json()["notes"] == {}
        assert seconds_until(lambda: all_answer(first, "127.0.0.2")) < WITHIN_S
    finally:
        site.stop()
