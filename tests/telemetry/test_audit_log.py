"""The file of audit lines: whole lines from several processes, rotation, and disks that fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from loguru import logger

from embedshare import platforms
from embedshare.telemetry.audit_log import LOOK_EVERY_S, TELL_EVERY_S, AuditLog
from tests.forking import forks, holds_in_forked_child
from tests.processes import SRC, environment, run_python

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and limits are POSIX's")
WRITE = """
import json, sys, time
from pathlib import Path
from embedshare.telemetry import audit_log
audit_log.LOOK_EVERY_S = 0.01
log = audit_log.AuditLog(Path(sys.argv[1]))
for number in range(1000):
    while number == 500 and not Path(sys.argv[1] + ".1").exists():
        time.sleep(0.01)
    line = {"who": sys.argv[2], "number": number, "filling": "x" * (number * 37 % 6000)}
    log.write(json.dumps(line).encode() + b"\\n")
"""


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line).strip()), format="{level} {message}", level="INFO")
    yield lines
    logger.remove(sink)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_lines_of_several_processes_stay_whole_also_while_the_file_is_renamed(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(path), who], env=environment(PYTHONPATH=str(SRC)))
        for who in "abcd"
    ]
    rotated = 0
    while any(writer.poll() is None for writer in writers):
        if path.exists() and path.stat().st_size > 300_000:
            rotated += 1
            path.rename(tmp_path / f"audit.jsonl.{rotated}")
    assert [writer.returncode for writer in writers] == [0] * 4
    lines = [json.loads(line) for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    expected = [(who, number) for who in "abcd" for number in range(1000)]
    assert sorted((one["who"], one["number"]) for one in lines) == expected
    assert rotated >= 1  # in the midst: writers wait for it


def test_lines_go_to_a_renamed_file_for_a_second_and_then_to_a_new_one(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "audit"
    log = AuditLog(path, clock)
    log.write(b"one\n")
    path.rename(tmp_path / "audit.1")
    log.write(b"two\n")
    clock.now_s = LOOK_EVERY_S
    log.write(b"three\n")
    assert (tmp_path / "audit.1").read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n"


def test_threads_that_write_while_the_file_is_replaced_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedshare.telemetry.audit_log.LOOK_EVERY_S", 0.0)
    log = AuditLog(tmp_path / "audit")

    def write(number: int) -> None:
        if number % 50 == 0:
            platforms.replace(tmp_path / "audit", tmp_path / f"audit.{number}")
        log.write(b"%d\n" % number)

    log.write(b"first\n")
    with ThreadPoolExecutor(1) as rotating, ThreadPoolExecutor(6) as threads:
        list(rotating.map(write, [50]))
        list(threads.map(write, [n for n in range(500) if n % 50]))
        list(rotating.map(write, [100]))
    found = sorted(line for file in tmp_path.iterdir() for line in file.read_text().split())
    assert found == sorted(["first", "50", "100", *(str(n) for n in range(500) if n % 50)])


@posix
def test_a_new_file_is_its_owner_s_alone_and_an_open_one_is_warned_of(
    tmp_path: Path, said: list[str]
) -> None:
    path = tmp_path / "audit"
    AuditLog(path).write(b"one\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert said == []
    path.chmod(0o644)
    AuditLog(path).write(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"  # as its administrator has chosen
    assert len(said) == 1
    assert "which others can read or own" in said[0]


def test_a_truncated_file_is_written_from_its_beginning(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    log.write(b"one\n")
    with (tmp_path / "audit").open("r+b") as file:
        file.truncate(0)
    log.write(b"two\n")
    assert (tmp_path / "audit").read_bytes() == b"two\n"


def test_a_folder_that_went_away_costs_lines_and_is_told_once_a_minute(
    tmp_path: Path, said: list[str]
) -> None:
    folder, clock = tmp_path / "logs", Clock()
    log = AuditLog(folder / "audit", clock)
    for _ in range(20):
        log.write(b"lost\n")
    assert said == [f"ERROR Losing audit lines, 1 so far ({folder / 'audit'}: No such file or directory)"]
    clock.now_s = TELL_EVERY_S - 1
    log.write(b"lost\n")
    assert len(said) == 1
    clock.now_s = TELL_EVERY_S
    log.write(b"lost\n")
    assert "22 so far" in said[1]
    folder.mkdir()
    log.write(b"here\n")
    assert said[2:] == [f"INFO Writing audit lines to {folder / 'audit'} again; 22 were lost"]
    assert (folder / "audit").read_bytes() == b"here\n"
    for _ in range(5):  # it comes and goes
        (folder / "audit").unlink()
        folder.rmdir()
        clock.now_s += LOOK_EVERY_S
        log.write(b"lost\n")
        folder.mkdir()
        log.write(b"here\n")
    assert len(said) == 3
    folder.rename(tmp_path / "elsewhere")
    clock.now_s = 3 * TELL_EVERY_S
    log.write(b"lost\n")
    assert "6 so far" in said[3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_lines_and_no_request(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "audit"
    path.symlink_to("/dev/full")
    clock = Clock()
    log = AuditLog(path, clock)
    for _ in range(3):
        log.write(b"lost\n")
    path.unlink()
    clock.now_s += LOOK_EVERY_S
    log.write(b"here\n")
    assert path.read_bytes() == b"here\n"
    told = [line for line in said if not line.startswith("WARNING")]  # anyone may write to that device
    assert told[0] == f"ERROR Losing audit lines, 1 so far ({path}: No space left on device)"
    assert told[1:] == [f"INFO Writing audit lines to {path} again; 3 were lost"]


@posix
def test_a_line_that_the_disk_has_cut_stands_alone(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from embedshare.telemetry.audit_log import AuditLog
log = AuditLog(Path({str(tmp_path / "audit")!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (25, resource.RLIM_INFINITY))
for number in range(4):
    log.write(b"line %04d\\n" % number)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for number in (4, 5):
    log.write(b"line %04d\\n" % number)
"""
    run_python(code, environment(PYTHONPATH=str(SRC)))
    lines = (tmp_path / "audit").read_text().splitlines()
    assert lines == ["line 0000", "line 0001", "line ", "line 0004", "line 0005"]


@forks
def test_a_forked_child_writes_though_a_thread_of_its_parent_held_the_file(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    log.write(b"parent\n")

    def writes() -> bool:
        log.write(b"child\n")
        return True

    with log._lock:
        assert holds_in_forked_child(writes)
    log.write(b"parent again\n")
    assert (tmp_path / "audit").read_bytes() == b"parent\nchild\nparent again\n"
