"""Private files are written completely or not at all, and ignored if others can read them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from loguru import logger

from embedshare import private_file

posix = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX's")


class Note(msgspec.Struct):
    """The content of a file."""

    text: str


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@posix
@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("write", [private_file.replace, private_file.create_unless_there])
def test_the_file_and_its_folder_are_its_users_alone_whatever_the_umask(
    tmp_path: Path, write: Callable[[Path, bytes], None]
) -> None:
    path = tmp_path / "made" / "secret"
    write(path, b"\r\n\0 as it is")
    assert path.read_bytes() == b"\r\n\0 as it is"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert list(path.parent.iterdir()) == [path], "no draft is left"


@posix
@pytest.mark.usefixtures("open_umask")
def test_a_file_that_is_made_is_its_users_alone_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    private_file.create(path, b"first")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        private_file.create(path, b"second")
    assert path.read_bytes() == b"first"


def test_of_those_who_create_it_at_once_the_first_one_s_stays(tmp_path: Path) -> None:
    path, together = tmp_path / "key", threading.Barrier(8)

    def create(number: int) -> bytes:
        together.wait(30)
        private_file.create_unless_there(path, b"%d" % number * 1000)
        return private_file.read(path)

    with ThreadPoolExecutor(8) as threads:
        seen = set(threads.map(create, range(8)))
    assert seen == {path.read_bytes()}
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_one_of_the_contents_whole_while_it_is_replaced(tmp_path: Path) -> None:
    path, contents = tmp_path / "note", {bytes([letter]) * 100_000 for letter in b"abc"}
    private_file.replace(path, min(contents))
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            for content in contents:
                private_file.replace(path, content)

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        seen = {private_file.read(path) for _ in range(300)}
        over.set()
        writing.result(30)
    assert seen <= contents
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        private_file.replace(tmp_path / "folder", b"no file")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_file_that_others_can_read_or_change_is_not_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    private_file.create(path, b"known")
    path.chmod(mode)
    with pytest.raises(private_file.Exposed) as caught:
        private_file.read(path)
    assert f"its mode {mode:04o}" in str(caught.value.strerror)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize(
    ("content", "mode", "found", "logged"),
    [
        (b'{"text": "kept"}', 0o600, Note("kept"), ""),
        (None, 0o600, None, ""),
        (b"{}", 0o600, None, "missing required field"),
        (b"\xff", 0o600, None, "Ignoring"),
        pytest.param(b'{"text": "kept"}', 0o644, None, "readable only by its owner", marks=posix),
    ],
)
def test_a_note_is_what_its_file_says_or_ignored_with_a_reason(
    tmp_path: Path, content: bytes | None, mode: int, found: Note | None, logged: str
) -> None:
    path, lines = tmp_path / "note.json", []
    if content is not None:
        private_file.create(path, content)
        path.chmod(mode)
    sink = logger.add(lambda line: lines.append(str(line)))
    try:
        assert private_file.read_note(path, Note) == found
    finally:
        logger.remove(sink)
    assert bool(lines) == bool(logged)
    assert logged in "".join(lines)
