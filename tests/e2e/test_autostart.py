"""EMBEDDING_AUTOSTART: a client that finds no server starts one for all, and it exits by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from embeddingClient import EmbeddingClient
from embedshare.client import autostart
from embedshare.client.autostart import Autostart
from embedshare.errors import InvalidSetting, ServerUnavailable
from embedshare.settings import Settings
from tests.processes import CACHE, LONG, MODEL, convert_once, environment, free_port, wait_for

CALLER = """
import json, sys, time
from embeddingClient import get_embedding_model
sys.stdin.readline()
model = get_embedding_model()
rows = model.encode(["one model, many workers", sys.argv[1]])
print(json.dumps([model.health()["state"], model.stats()["pid"], rows[0].tolist()]), flush=True)
"""


class Machine:
    """A user's processes, which share one folder for key, notes and locks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.given = {
            "EMBEDDING_SERVER_PORT": str(free_port()),
            "EMBEDDING_AUTHKEY_FILE": str(folder / "state" / "authkey"),
            "EMBEDDING_CACHE_DIR": CACHE,
            "EMBEDDING_MODEL_NAME": MODEL,
            "EMBEDDING_AUTOSTART": "true",
            "EMBEDDING_IDLE_EXIT_S": "120",
        }

    def settings(self, **changes: str) -> Settings:
        return Settings.load({**self.given, **changes}, dotenv=self.folder / "no.env")

    def caller(self, number: int, **changes: str) -> subprocess.Popen[str]:
        """Start a process that waits for a line and then embeds."""
        return subprocess.Popen(
            [sys.executable, "-c", CALLER, str(number)],
            env=environment(**{**self.given, **changes}), cwd=self.folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def servers(self) -> list[psutil.Process]:
        """Return the model servers on this machine's port, whichever process started them."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = autostart.FLAG in process.cmdline() and process.environ().get(
                    "EMBEDDING_SERVER_PORT"
                ) == str(self.settings().server.port)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    convert_once(MODEL)
    machine = Machine(tmp_path)
    yield machine
    for server in machine.servers():
        server.kill()
        server.wait(20)


def go(caller: subprocess.Popen[str]) -> None:
    assert caller.stdin is not None
    caller.stdin.write("\n")
    caller.stdin.flush()


def result(caller: subprocess.Popen[str]) -> tuple[str, int, list[float]]:
    said, complained = caller.communicate(timeout=120)
    assert caller.returncode == 0, complained
    state, pid, row = json.loads(said.splitlines()[-1])
    return state, pid, row


#: Processes that need a server at the same time.
PROCESSES = 16 if LONG else 6


def test_processes_that_need_a_server_at_once_share_one(machine: Machine) -> None:
    callers = [machine.caller(number) for number in range(PROCESSES)]
    for caller in callers:
        go(caller)
    results = [result(caller) for caller in callers]
    assert {state for state, _, _ in results} == {"connected"}
    assert len({pid for _, pid, _ in results}) == 1
    assert [server.pid for server in machine.servers()] == [results[0][1]]
    rows = np.array([row for _, _, row in results])
    assert np.allclose(rows, rows[0], atol=1e-2)  # other batches round differently
    assert not autostart.note_of(machine.settings()).exists()


def test_the_server_outlives_who_started_it_even_where_that_is_killed_meanwhile(machine: Machine) -> None:
    starter = machine.caller(0)
    go(starter)
    note = autostart.note_of(machine.settings())
    wait_for(note.exists, 60, "the note of a start")
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    others = [machine.caller(number) for number in (1, 2)]
    for other in others:
        go(other)
    pids = {result(other)[1] for other in others}
    assert [server.pid for server in machine.servers()] == list(pids)


def test_it_ends_when_nobody_asks_and_is_started_again_by_the_next(machine: Machine) -> None:
    settings = machine.settings(EMBEDDING_IDLE_EXIT_S="2")
    with EmbeddingClient(settings=settings) as client:
        first = client.encode("a text")
        pid = client.stats()["pid"]
        server = psutil.Process(pid)
        while_used = time.monotonic() + 4
        while time.monotonic() < while_used:
            client.encode("a text")
            time.sleep(0.2)
        assert server.is_running()
        looked = [client.health()["status"]]  # a health check does not count as use
        wait_for(lambda: machine.servers() == [], 30, "its end")
        assert looked == ["ok"]
        again = client.encode("a text")
        assert np.allclose(first, again, atol=1e-2)
        assert client.stats()["pid"] != pid
        assert client.stats()["fallbacks"] == 0
    log = Autostart(settings).log.read_text()
    assert "Stopping (idle for 2 s)" in log
    assert log.count("stopped") == 1


def test_one_that_was_killed_is_started_again_for_a_call_under_way(machine: Machine) -> None:
    with EmbeddingClient(settings=machine.settings()) as client:
        client.encode("a text")
        (server,) = machine.servers()
        server.kill()
        server.wait(20)
        assert client.encode("another text").shape == (384,)
        assert client.stats()["fallbacks"] == 0
        assert [one.pid for one in machine.servers()] == [client.stats()["pid"]]


def test_a_start_that_fails_is_told_once_and_not_tried_again_at_once(machine: Machine) -> None:
    settings = machine.settings(EMBEDDING_MODEL_NAME="no/such-model", EMBEDDING_FALLBACK="none")
    for _ in range(2):
        with EmbeddingClient(settings=settings, retry_delay=0.05) as client, pytest.raises(ServerUnavailable):
            client.encode("a text")
    log = Autostart(settings).log.read_text()
    assert log.count("ERROR") == 1
    assert "no/such-model" in log
    assert machine.servers() == []


def test_a_note_of_a_start_that_failed_long_ago_keeps_nobody_from_starting(machine: Machine) -> None:
    settings = machine.settings()
    note = autostart.note_of(settings)
    note.parent.mkdir(parents=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    note.write_text(json.dumps({"pid": ended.pid, "created": time.time() - autostart.RETRY_S - 1}))
    with EmbeddingClient(settings=settings) as client:
        assert client.encode("a text").shape == (384,)


def test_the_number_of_a_process_that_is_another_s_now_is_not_taken_for_a_start(machine: Machine) -> None:
    settings = machine.settings()
    note = autostart.note_of(settings)
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"pid": os.getpid(), "created": time.time() - 3600}))
    with EmbeddingClient(settings=settings) as client:
        assert client.encode("a text").shape == (384,)


def test_without_it_no_server_is_started(machine: Machine) -> None:
    settings = machine.settings(EMBEDDING_AUTOSTART="false", EMBEDDING_FALLBACK="none")
    with EmbeddingClient(settings=settings, retry_delay=0.05) as client, pytest.raises(ServerUnavailable):
        client.encode("a text")
    assert machine.servers() == []


def test_another_machine_s_server_cannot_be_started(machine: Machine) -> None:
    with pytest.raises(InvalidSetting, match="another machine"):
        EmbeddingClient(settings=machine.settings(EMBEDDING_SERVER_HOST="10.0.0.1"))
