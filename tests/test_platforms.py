"""The memory that control groups leave a process, files that others can change, and resets after fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedshare import platforms
from tests.forking import forks, holds_in_forked_child
from tests.processes import environment


def group(folder: Path, limit: str, used: int = 100, reclaimable: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {reclaimable}\n")


def left(tmp_path: Path, own: str) -> int | None:
    (tmp_path / "own").write_text(f"1:cpu:/elsewhere\n0::{own}\n")
    return platforms.container_memory_left(tmp_path / "groups", tmp_path / "own")


def test_a_container_s_limit_is_that_of_the_root_it_sees(tmp_path: Path) -> None:
    group(tmp_path / "groups", "1000")
    assert left(tmp_path, "/") == 1000 - 100 + 10
    assert left(tmp_path, "/of/the/host") == 910  # this control group is not mounted here


@pytest.mark.parametrize(
    ("unit", "slice_limit", "expected"), [("500", "max", 410), ("max", "700", 610), ("500", "300", 210)]
)
def test_a_unit_s_limit_counts_and_so_does_that_of_the_slice_above(
    tmp_path: Path, unit: str, slice_limit: str, expected: int
) -> None:
    group(tmp_path / "groups" / "system.slice", slice_limit)
    group(tmp_path / "groups" / "system.slice" / "embedshare.service", unit)
    assert left(tmp_path, "/system.slice/embedshare.service") == expected


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    group(tmp_path / "groups", "max")
    assert left(tmp_path, "/") is None
    assert left(tmp_path, "/../beside") is None
    assert platforms.container_memory_left(tmp_path / "groups", tmp_path / "nothing") is None


def status_of(owner: int, group: int, mode: int) -> os.stat_result:
    return os.stat_result((0o100000 | mode, 1, 1, 1, owner, group, 1, 0, 0, 0))


@pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX's")
@pytest.mark.parametrize(
    ("owner", "group", "mode", "trusted"),
    [
        ("me", "nameless", 0o644, True),  # others can read the file but not change it
        ("root", "nameless", 0o644, True),
        ("me", "nameless", 0o660, True),  # a pod's volume: its group has no name here
        ("me", "me", 0o664, True),  # the user's private group, and umask 002
        ("me", "users", 0o664, False),
        ("me", "not mine", 0o664, False),
        ("root", "root", 0o664, True),
        ("stranger", "me", 0o600, False),
        ("me", "me", 0o666, False),
        ("me", "me", 0o602, False),
    ],
)
def test_a_file_that_another_user_owns_or_can_write_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, owner: str, group: str, mode: int, trusted: bool
) -> None:
    numbers = {"me": 4711, "root": 0, "stranger": 4712, "nameless": 4713, "not mine": 4714}
    import grp

    numbers["users"] = grp.getgrnam("daemon").gr_gid  # a group that has a name
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(os, "getegid", lambda: 4711)
    monkeypatch.setattr(os, "getgroups", lambda: [4711, 4713, numbers["users"]])
    fault = platforms.fault_of_trust(status_of(numbers[owner], numbers[group], mode))
    assert (fault is None) is trusted
    if fault is not None:
        assert f"user {numbers[owner]}, its group {numbers[group]}, its mode {mode:04o}" in fault


class Counted:
    """An object whose parts a forked child recreates."""

    def __init__(self, order: list[str], name: str) -> None:
        self.order, self.name = order, name
        platforms.after_fork_in_child(self.reset)

    def reset(self) -> None:
        self.order.append(self.name)
        if self.name == "faulty":
            raise ValueError("this one cannot be reset")


@forks
def test_in_a_forked_child_each_living_object_is_reset_once_in_order_whatever_one_of_them_raises() -> None:
    order: list[str] = []
    living = [Counted(order, name) for name in ("first", "faulty", "last")]
    Counted(order, "gone")
    assert holds_in_forked_child(lambda: order == [one.name for one in living])
    assert order == []


def test_an_object_that_is_gone_leaves_nothing_behind() -> None:
    before = len(platforms._in_child)
    one = Counted([], "one")
    assert len(platforms._in_child) == before + 1
    del one
    assert len(platforms._in_child) == before


def test_an_exit_with_objects_that_are_still_there_says_nothing() -> None:
    program = (
        "from embedshare.backoff import Backoff\n"
        "from embedshare.breaker import Breaker, Limits\n"
        "breaker = Breaker(Limits(Backoff(1, 10)))\n"
        "breaker.itself = breaker\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@forks
def test_a_function_is_called_in_children_of_children_too() -> None:
    called: list[int] = []
    platforms.after_fork_in_child(lambda: called.append(os.getpid()))

    def in_child() -> bool:
        first = os.getpid()
        return called == [first] and holds_in_forked_child(lambda: called == [first, os.getpid()])

    assert holds_in_forked_child(in_child)
