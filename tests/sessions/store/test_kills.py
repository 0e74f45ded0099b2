"""A process that is killed at any moment leaves whole documents, and all that it was told are published."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedshare.errors import StoreFailed, StoreInUse
from embedshare.sessions.store.base import open_embedded
from tests.processes import LONG, ROOT, environment
from tests.sessions.store.chunks import publish, rows

KILLS = 200 if LONG else 20
DIMENSION = 16

#: Publishes version after version of one document, and prints each number once it is acknowledged. Every
#: fifth version is dropped and published again. A second document is there and stays.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from embedshare.sessions.store.base import open_embedded
from tests.sessions.store.chunks import chunk_of, rows
print("starting", flush=True)
store = open_embedded(Path(sys.argv[1]), "model", 16, {})
print("open", flush=True)
number = int(sys.argv[2])
while True:
    number += 1
    chunks = 20 + number % 7
    points = [chunk_of(each, row, version=f"v{number}") for each, row in enumerate(rows(chunks, 16))]
    for first in range(0, chunks, 6):
        store.put(points[first : first + 6])
        if number % 5 == 0 and first == 6:
            store.drop_document("s", "d", f"v{number}")
            store.put(points[:6])
            store.put(points[6:12])
    store.publish("s", "d", f"v{number}", chunks)
    print(number, flush=True)
"""


class Uploader:
    """The program in a process of its own."""

    def __init__(self, folder: Path, last: int = 0) -> None:
        command = [sys.executable, "-c", PROGRAM, str(folder), str(last)]
        settings = environment(PYTHONPATH=os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
        self._process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, bufsize=0)

    def wait_for(self, line: str) -> None:
        assert self._process.stdout is not None
        while (found := self._process.stdout.readline().decode().strip()) != line:
            assert found, "the program has ended"

    def end_after(self, seconds: float) -> int:
        """Kill it after so long; returns the last number that it printed, 0 for none."""
        assert self._process.stdout is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
        printed = self._process.stdout.read().decode().split()
        self._process.stdout.close()
        self._process.wait()
        return max((int(each) for each in printed if each.isdigit()), default=0)


@pytest.mark.timeout(1200)  # 200 kills in the long form
def test_killed_at_any_moment_it_leaves_whole_documents_and_every_acknowledged_one(tmp_path: Path) -> None:
    chance, folder = random.Random(21), tmp_path / "store"
    with_other = open_embedded(folder, "model", DIMENSION, {})
    publish(with_other, rows(5, DIMENSION), document="other")
    with_other.close()
    known, moved = 0, 0
    for kill in range(KILLS):
        uploader = Uploader(folder, known)
        uploader.wait_for("starting" if kill % 5 == 0 else "open")
        acknowledged = uploader.end_after(chance.uniform(0, 0.15))
        store = open_embedded(folder, "model", DIMENSION, {})
        found = store.search("s", np.ones(DIMENSION), 1000)
        assert sum(each.document == "other" for each in found) == 5
        versions = {int(each.text.split()[0][1:]) for each in found if each.document == "d"}
        number = versions.pop() if versions else 0
        assert not versions, f"parts of versions {versions} and {number}"
        assert number in {max(acknowledged, known), max(acknowledged, known) + 1}
        chunks = sorted(each.chunk for each in found if each.document == "d")
        assert chunks == list(range(20 + number % 7 if number else 0))
        assert store.count("s") == len(found)
        moved += number > known
        known = number
        store.close()
    assert moved > KILLS / 3


def test_a_second_opener_is_refused_here_and_in_another_process(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    uploader = Uploader(folder)
    uploader.wait_for("1")
    with pytest.raises(StoreInUse, match="another process"):
        open_embedded(folder, "model", DIMENSION, {})
    assert uploader.end_after(0.0) >= 0
    store = open_embedded(folder, "model", DIMENSION, {})
    with pytest.raises(StoreInUse):
        open_embedded(folder, "model", DIMENSION, {})
    assert store.count("s") >= 20
    store.close()
    open_embedded(folder, "model", DIMENSION, {}).close()


def test_a_folder_whose_process_was_killed_while_it_made_the_shard_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    open_embedded(folder, "model", DIMENSION, {}).close()
    (folder / "store.json").unlink()
    (folder / "shard" / "edge_config.json").write_text("{")
    store = open_embedded(folder, "model", DIMENSION, {})
    publish(store, rows(3, DIMENSION))
    assert store.count("s") == 3
    store.close()


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such rights there")
def test_a_folder_that_others_can_read_or_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(StoreFailed, match="others can read or own the folder"):
        open_embedded(folder, "model", DIMENSION, {})
    folder.chmod(0o700)
    open_embedded(folder, "model", DIMENSION, {}).close()
    (tmp_path / "file").touch()
    with pytest.raises(StoreFailed, match="cannot be kept in"):
        open_embedded(tmp_path / "file" / "store", "model", DIMENSION, {})


def test_a_damaged_note_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    open_embedded(folder, "model", DIMENSION, {}).close()
    (folder / "store.json").write_text("{")
    with pytest.raises(StoreFailed, match=r"store\.json is damaged"):
        open_embedded(folder, "model", DIMENSION, {})
