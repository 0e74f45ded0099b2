"""Log files that are rotated while a process writes to them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from embedshare import platforms
from embedshare.supervise.rotation import rotate
from tests.processes import environment, run_python, wait_for


def test_a_log_moves_on_when_it_is_too_large_and_the_oldest_goes(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    for number in range(5):
        log.write_text(f"{number}" * 11)
        rotate(log, 10, keep=3)
        assert log.read_text() == ""
    kept = {path.name: path.read_text()[0] for path in tmp_path.iterdir() if path != log}
    assert kept == {"worker.log.1": "4", "worker.log.2": "3", "worker.log.3": "2"}


def test_a_small_log_or_none_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    rotate(log, 10, keep=3)
    log.write_text("x" * 10)
    rotate(log, 10, keep=3)
    assert [path.name for path in tmp_path.iterdir()] == ["worker.log"]


def test_without_any_kept_it_is_only_cut(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("x" * 11)
    rotate(log, 10, keep=0)
    assert log.read_text() == ""
    assert len(list(tmp_path.iterdir())) == 1


def test_a_process_goes_on_at_the_start_of_a_log_that_was_cut(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    program = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with platforms.append_only(log) as output:
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=output)
    assert process.stdin is not None

    def say(line: str) -> None:
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()
        wait_for(lambda: line in log.read_text(), 20)

    say("first line")
    rotate(log, 5, keep=1)
    say("second line")
    assert log.read_bytes() == b"second line\n"  # not after ten zero bytes
    assert (tmp_path / "worker.log.1").read_text() == "first line\n"
    process.stdin.close()
    assert process.wait(20) == 0


def test_a_log_that_cannot_be_copied_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("x" * 11)
    (tmp_path / "worker.log.1").mkdir()
    (tmp_path / "worker.log.1" / "in the way").touch()
    rotate(log, 10, keep=1)
    assert log.read_text() == "x" * 11


@pytest.mark.skipif(sys.platform == "win32", reason="a limit for the size of files stands for a full disk")
def test_logs_that_cannot_be_written_are_told_once_and_so_is_their_return(tmp_path: Path) -> None:
    program = f"""
import resource, signal
from pathlib import Path
from loguru import logger
from embedshare.supervise.process import last_lines
from embedshare.supervise.rotation import Logs

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logger.remove()
logger.add(lambda line: print(line, end=""), format="{{level}} {{message}}")
now, log = 0.0, Path({str(tmp_path)!r}, "worker.log")
log.write_text("last words\\n")
logs = Logs(5, 1, clock=lambda: now)
for limit in (0, 0, resource.RLIM_INFINITY, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    now += 11
    print("looks", flush=True)
    logs(log)
    if limit == 0:
        print(last_lines(log, 1), flush=True)
"""
    said = run_python(program, environment()).splitlines()
    lost = f"['last words', '(nothing more can be written to {tmp_path}/worker.log: File too large)']"
    told = (
        f"ERROR Cannot write logs to {tmp_path} (File too large): the services continue, but their log lines"
    )
    assert [line[: len(told)] for line in said] == [
        "looks",
        told,
        lost[: len(told)],
        "looks",
        lost[: len(told)],
        "looks",
        f"INFO Writing logs to {tmp_path} again",
        "looks",
    ]
    assert lost in said
    assert (tmp_path / "worker.log.1").read_text() == "last words\n"  # rotation works again
