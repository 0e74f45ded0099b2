"""Real child processes: their output, how they are stopped, and which processes a kill includes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from embedshare.supervise.process import Child, ProcessSpec, last_lines
from tests.processes import SRC, wait_for

FOLLOW = """
import sys, threading
from embedshare.supervise.lifeline import follow
stop = threading.Event()
follow(stop.set)
print("following", flush=True)
stop.wait(30)
print("finishing what I do")
sys.exit(7)
"""
FAMILY = """
import subprocess, sys
child = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', %r]).pid, flush=True); %s"
wait = "import time; time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child % (wait, wait)])
import time; time.sleep(60)
"""


class Starter:
    def __init__(self, folder: Path) -> None:
        self.log = folder / "logs" / "child.log"
        self.children: list[Child] = []

    def __call__(self, program: str, **environment: str) -> Child:
        spec = ProcessSpec(
            "child",
            [sys.executable, "-c", program],
            host="127.0.0.1",
            port=0,
            log=self.log,
            ready=lambda: True,
            environment={"PYTHONPATH": str(SRC), **environment},
        )
        self.children.append(Child(spec))
        return self.children[-1]

    def said(self) -> list[str]:
        return last_lines(self.log)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    for child in starter.children:
        child.kill()
        child.wait()


def test_output_and_errors_go_to_the_log_with_the_given_environment(start: Starter) -> None:
    program = "import os, sys; print(os.environ['COLOUR']); sys.stderr.write('oops\\n'); sys.exit(3)"
    assert start(program, COLOUR="blue").wait() == 3
    assert start.said() == ["blue", "oops"]


def test_a_restart_adds_to_the_log(start: Starter) -> None:
    for word in ("first", "second"):
        assert start(f"print({word!r})").wait() == 0
    assert start.said() == ["first", "second"]


def test_output_is_in_the_log_at_once(start: Starter) -> None:
    start("import time; print('alive'); time.sleep(60)")
    assert wait_for(start.said, 20) == ["alive"]


def test_a_child_that_is_asked_to_stop_finishes_and_ends_by_itself(start: Starter) -> None:
    child = start(FOLLOW)
    wait_for(start.said, 20)
    child.ask_to_stop()
    child.ask_to_stop()  # a second request has no effect
    assert child.wait() == 7
    assert start.said() == ["following", "finishing what I do"]


def test_a_child_stops_when_its_supervisor_is_killed(start: Starter) -> None:
    supervisor = start(
        "import sys, time; from pathlib import Path; from embedshare.supervise.process import *\n"
        f"command, log = [sys.executable, '-c', {FOLLOW!r}], Path({str(start.log)!r})\n"
        "child = Child(ProcessSpec('c', command, '127.0.0.1', 0, log, bool))\n"
        "print(child.pid); time.sleep(60)"
    )
    wait_for(lambda: len(start.said()) == 2, 20)
    (grandchild,) = psutil.Process(supervisor.pid).children()
    psutil.Process(supervisor.pid).kill()  # only the supervisor, which can no longer signal its children
    assert supervisor.wait() == -9 or sys.platform == "win32"
    grandchild.wait(20)
    assert "finishing what I do" in start.said()


@pytest.mark.parametrize(("before", "threads"), [("", 2), ("os.environ.pop(VARIABLE)", 1)])
def test_only_a_supervised_program_follows_and_what_it_starts_does_not(
    start: Starter, before: str, threads: int
) -> None:
    program = f"import os, threading; from embedshare.supervise.lifeline import *; {before}\nfollow(bool)\n"
    assert start(program + "print(threading.active_count(), VARIABLE in os.environ)").wait() == 0
    assert start.said() == [f"{threads} False"]


@pytest.mark.skipif(sys.platform == "win32", reason="sessions are POSIX's")
def test_a_terminals_interrupt_does_not_reach_a_child(start: Starter) -> None:
    child = start("import time; time.sleep(60)")
    assert os.getsid(child.pid) == child.pid != os.getsid(0)


def test_a_kill_takes_grandchildren_along(start: Starter) -> None:
    child = start(FAMILY)
    wait_for(start.said, 20)
    family = psutil.Process(child.pid).children(recursive=True)
    assert int(start.said()[0]) in [process.pid for process in family]
    assert len(family) == 2
    child.kill()
    assert child.wait() != 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_killing_what_has_ended_does_nothing(start: Starter) -> None:
    child = start("")
    assert child.wait() == 0
    child.kill()
    assert child.wait() == 0


def test_the_last_lines_of_a_huge_log_are_read_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "huge.log"
    with log.open("wb") as file:
        file.seek(5 << 30)  # a sparse file: 5 GiB that no process wrote
        file.write(b"\n" + b"".join(b"line %d\n" % n for n in range(20)))
    assert last_lines(log, 3) == ["line 17", "line 18", "line 19"]
    assert len(last_lines(log)) == 10


@pytest.mark.parametrize(
    ("content", "lines"),
    [(b"", []), (b"one", ["one"]), (b"one\r\n\xff\n", ["one", "\ufffd"]), ("é".encode() * 70_000, None)],
)
def test_whatever_a_log_holds_it_can_be_read(tmp_path: Path, content: bytes, lines: list[str] | None) -> None:
    (tmp_path / "log").write_bytes(content)
    found = last_lines(tmp_path / "log")
    assert found == lines if lines is not None else len(found[0]) in (32 * 1024, 32 * 1024 + 1)


def test_a_log_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "missing.log") == []


def test_a_log_that_cannot_be_opened_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="set EMBEDDING_LOG_DIR to another folder"):
        Starter(tmp_path)("print()")
