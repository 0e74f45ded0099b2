"""A port that outlives the processes that serve it, with real processes."""

from __future__ import annotations

import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest

from embedshare import platforms
from embedshare.supervise import held_port
from embedshare.supervise.process import Child, ProcessSpec
from tests.processes import SRC, free_port

pytestmark = pytest.mark.skipif(not platforms.PASSES_SOCKETS, reason="no socket is passed to a child here")
ANSWER = """
import os, sys
from embedshare.supervise import held_port
listener = held_port.take("127.0.0.1", int(sys.argv[1]))
assert not listener.get_inheritable() and held_port.VARIABLE not in os.environ
connection, _ = listener.accept()
connection.sendall(sys.argv[2].encode())
connection.close()
"""
TAKE = """
import sys
from embedshare.supervise import held_port
print(held_port.take("127.0.0.1", int(sys.argv[1])))
"""


def start(folder: Path, listener: socket.socket | None, program: str, *arguments: str) -> int:
    command = [sys.executable, "-c", program, *arguments]
    spec = ProcessSpec(
        "child", command, "127.0.0.1", 0, folder / "log", bool, {"PYTHONPATH": str(SRC)}, keeps_port=True
    )
    return Child(spec, listener).wait()


def test_a_connection_that_comes_between_two_processes_is_answered_by_the_second(tmp_path: Path) -> None:
    port = free_port()
    listener = held_port.hold("127.0.0.1", port)
    assert listener is not None
    with listener:
        for word in ("first", "second"):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as caller:
                assert start(tmp_path, listener, ANSWER, str(port), word) == 0, (tmp_path / "log").read_text()
                assert caller.recv(99) == word.encode()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=20)


def test_a_process_takes_no_socket_of_another_address(tmp_path: Path) -> None:
    listener = held_port.hold("127.0.0.1", free_port())
    assert listener is not None
    with closing(listener):
        assert start(tmp_path, listener, TAKE, str(free_port())) == 0
    assert (tmp_path / "log").read_text() == "None\n"
    assert held_port.take("127.0.0.1", 5000) is None  # this process has no supervisor


def test_an_address_is_the_same_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = held_port.hold("::1", free_port())
    if listener is None:
        pytest.skip("no IPv6 here")
    port = listener.getsockname()[1]
    monkeypatch.setenv(held_port.VARIABLE, str(listener.detach()))
    taken = held_port.take("0:0:0:0:0:0:0:1", port)
    assert taken is not None
    taken.close()


def test_a_port_that_is_taken_or_belongs_to_a_name_is_left_to_the_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert held_port.hold("127.0.0.1", other.getsockname()[1]) is None
    assert held_port.hold("localhost", free_port()) is None
