"""The supervisor's channel, over real sockets."""

from __future__ import annotations

import errno
import json
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedshare.errors import InsecureKey, PortUnavailable, SupervisorError, SupervisorUnavailable
from embedshare.ipc import control
from tests.processes import wait_for


class Supervisor:
    """The supervisor that these tests put behind the channel."""

    def __init__(self) -> None:
        self.done: list[tuple[str, dict[str, Any]]] = []
        self.go_on = threading.Event()

    def __call__(self, do: str, given: dict[str, Any], say: Callable[[str], None]) -> Any:
        self.done.append((do, given))
        if do == "slow":
            say("first")
            say("second")
            self.go_on.wait(20)
        if do == "refuse":
            raise PortUnavailable("port 5000 is taken", port=5000)
        if do == "break":
            raise ValueError("an error of the program")
        return {"given": given}


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture
def file(tmp_path: Path, supervisor: Supervisor) -> Iterator[Path]:
    file = tmp_path / "state" / "supervisor-5002.json"
    server = control.ControlServer(file, supervisor)
    yield file
    server.close()


def test_a_command_is_carried_out_and_its_value_comes_back(file: Path, supervisor: Supervisor) -> None:
    assert control.ask(file, "scale", {"workers": 3}) == {"given": {"workers": 3}}
    assert supervisor.done == [("scale", {"workers": 3})]


def test_what_it_says_meanwhile_is_heard_before_it_is_done(file: Path, supervisor: Supervisor) -> None:
    heard: list[str] = []

    def hear(line: str) -> None:
        heard.append(line)
        if line == "second":
            supervisor.go_on.set()

    control.ask(file, "slow", on_said=hear)
    assert heard == ["first", "second"]


def test_errors_come_back_as_what_they_are(file: Path) -> None:
    with pytest.raises(PortUnavailable, match="port 5000 is taken") as caught:
        control.ask(file, "refuse")
    assert caught.value.fields == {"port": 5000}
    with pytest.raises(SupervisorError, match="break failed: ValueError: an error of the program"):
        control.ask(file, "break")


def test_a_moment_without_free_file_descriptors_does_not_end_the_channel(
    tmp_path: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, failures = control.Listener.accept, [OSError(errno.EMFILE, "Too many open files")]

    def short_of_files(listener: control.Listener) -> Any:
        if failures:
            raise failures.pop()
        return accept(listener)

    monkeypatch.setattr(control.Listener, "accept", short_of_files)
    server = control.ControlServer(tmp_path / "supervisor-5002.json", supervisor)
    try:
        assert control.ask(tmp_path / "supervisor-5002.json", "status") == {"given": {}}
    finally:
        server.close()


def test_one_that_says_nothing_is_not_waited_for_without_end(file: Path, supervisor: Supervisor) -> None:
    with pytest.raises(SupervisorUnavailable, match=r"did not answer for 0\.3 s"):
        control.ask(file, "slow", timeout_s=0.3)
    supervisor.go_on.set()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has access lists in place of modes")
def test_only_its_user_can_read_the_file_and_one_that_others_can_is_refused(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    with pytest.raises(InsecureKey, match="others can read"):
        control.ask(file, "status")


def test_who_holds_another_key_commands_nothing(file: Path, supervisor: Supervisor) -> None:
    where = json.loads(file.read_text())
    file.write_text(json.dumps(where | {"key": "0" * 64}))
    with pytest.raises(SupervisorUnavailable, match="does not answer"):
        control.ask(file, "stop")
    assert supervisor.done == []


@pytest.mark.parametrize("sent", [b"", b"\0\0\0\x04stop", b"\x7f\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"])
def test_strangers_command_nothing_and_keep_nobody_out(
    file: Path, supervisor: Supervisor, sent: bytes
) -> None:
    address = ("127.0.0.1", json.loads(file.read_text())["port"])
    strangers = [socket.create_connection(address) for _ in range(3 * control.MAX_UNAUTHENTICATED)]
    for stranger in strangers:
        try:
            stranger.sendall(sent)
        except OSError:
            pass  # the channel has already closed it
    assert control.ask(file, "status") == {"given": {}}
    assert supervisor.done == [("status", {})]
    for stranger in strangers:
        stranger.close()


def test_without_a_supervisor_it_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(SupervisorUnavailable, match=r"start one with: python service_manager\.py"):
        control.ask(tmp_path / "none.json", "status")


def test_a_file_that_was_left_behind_is_told_from_a_supervisor(tmp_path: Path) -> None:
    file = tmp_path / "supervisor.json"
    server = control.ControlServer(file, Supervisor())
    left = file.read_bytes()
    server.close()
    assert not file.exists()
    file.touch(0o600)
    file.write_bytes(left)
    wait_for(lambda: _refused(file), 20, "the port to be closed")
    file.write_bytes(b"{")
    with pytest.raises(SupervisorUnavailable, match="cannot be read"):
        control.ask(file, "status")


def _refused(file: Path) -> bool:
    try:
        control.ask(file, "status", timeout_s=1.0)
    except SupervisorUnavailable as error:
        return "no supervisor runs:" in error.message
    return False
