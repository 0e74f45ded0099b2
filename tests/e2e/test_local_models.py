"""Many workers lose the server at once: all continue, models load one at a time, and none without room."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from embedshare.calls import UNBOUNDED, EmbedRequest
from embedshare.client import local_model
from embedshare.engine import weights
from embedshare.errors import OutOfMemory
from tests.processes import LONG, ModelServer, copy_converted, wait_for

WORKER = """
import json, sys, time
import numpy as np
from embeddingClient import EmbeddingClient

expected = np.load(sys.argv[1])
with EmbeddingClient(retry_delay=0.1) as client:
    for line in sys.stdin:
        cosine = float(client.encode("a text") @ expected)
        view = client.health()
        print(json.dumps([cosine, view["state"], view["device"]]), flush=True)
"""


class Workers:
    """Processes that embed once for each input line."""

    def __init__(self, count: int, server: ModelServer, expected: Path) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(expected)],
                env=server.environment(EMBEDDING_LOCAL_RELEASE_S="0"),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for _ in range(count)
        ]  # fmt: skip

    def ask(self) -> list[tuple[float, str, str]]:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [tuple(json.loads(process.stdout.readline())) for process in self.processes]  # type: ignore[union-attr]

    def memory_mb(self) -> int:
        return sum(psutil.Process(process.pid).memory_info().rss for process in self.processes) >> 20

    def end(self) -> list[str]:
        """Return each process's log."""
        return [process.communicate(timeout=30)[1] for process in self.processes]


@pytest.fixture(scope="module")
def expected(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("standins") / "expected.npy"
    np.save(path, reference.encode("a text"))
    return path


#: Workers that lose their server at the same time.
WORKERS = 8 if LONG else 4


def test_workers_fall_back_by_turns_on_the_processor_and_return(tmp_path: Path, expected: Path) -> None:
    server = ModelServer(tmp_path).start()
    workers = Workers(WORKERS, server, expected)
    assert {state for _, state, _ in workers.ask()} == {"connected"}
    server.kill()
    began = time.monotonic()
    answers = workers.ask()
    took_s, memory_mb = time.monotonic() - began, workers.memory_mb()
    assert min(cosine for cosine, _, _ in answers) > 0.9995
    assert {(state, device) for _, state, device in answers} == {("falling back", "cpu")}
    server.start()
    wait_for(lambda: {state for _, state, _ in workers.ask()} == {"connected"}, 90, "all to return")
    said = workers.end()
    assert all(log.count("Loaded a local model") == 1 for log in said)
    print(
        f"\n{WORKERS} workers with local models: {memory_mb} MB resident, all answered after {took_s:.1f} s"
    )
    assert memory_mb < WORKERS * 450
    assert server.stop() == 0


@pytest.mark.long
def test_sixteen_workers_that_start_before_the_server_all_answer_and_all_find_it(
    tmp_path: Path, expected: Path
) -> None:
    server = ModelServer(tmp_path)
    workers = Workers(16, server, expected)
    server.start(wait=False)
    assert min(cosine for cosine, _, _ in workers.ask()) > 0.9995
    wait_for(lambda: {state for _, state, _ in workers.ask()} == {"connected"}, 90, "all to be connected")
    workers.end()
    assert server.stop() == 0


ENDING = """
import sys
from embeddingClient import EmbeddingClient
from embedshare.errors import DeadlineExceeded, ServerUnavailable

with EmbeddingClient(max_retries=1) as client:
    try:
        client.encode("text", timeout=float(sys.argv[1]))
    except (DeadlineExceeded, ServerUnavailable):
        pass
"""


def test_a_worker_that_ends_while_its_local_model_loads_ends_well(tmp_path: Path) -> None:
    """A thread in OpenVINO at interpreter exit aborts the process. A library's executor then fails, which is
    not an error of the model."""
    empty = tmp_path / "empty"
    converting = ModelServer(tmp_path, EMBEDDING_CACHE_DIR=str(empty)).environment()
    _ends_well(converting, "0.35")
    env = ModelServer(tmp_path).environment()
    for timeout in ("0.35", "0.6", "0.8", "1.1") if LONG else ("0.6",):
        _ends_well(env, timeout)


def _ends_well(env: dict[str, str], timeout: str) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, timeout], env=env, capture_output=True, text=True)
    assert done.returncode == 0, (timeout, done.stderr)
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if " | INFO " not in line and " INFO " not in line]
    assert len(said) <= 1, done.stderr  # only the fallback's warning


def test_a_model_without_room_is_not_loaded_and_the_server_is_waited_for(tmp_path: Path) -> None:
    vast = tmp_path / "vast"
    shutil.copytree(weights.find("all-MiniLM-L6-v2"), vast)
    os.truncate(vast / "model.safetensors", 1 << 42)  # a sparse file: four terabytes that take no space
    settings = ModelServer(tmp_path, EMBEDDING_MODEL_NAME=str(vast)).settings()
    with pytest.raises(OutOfMemory, match=r"needs about 8,388,858 MB, and the machine has [\d,]+ MB free"):
        local_model.load(settings, None)


def test_while_one_process_loads_others_wait(tmp_path: Path) -> None:
    settings = ModelServer(tmp_path, EMBEDDING_CACHE_DIR=str(tmp_path)).settings()
    code = (
        "import sys, time\n"
        "from filelock import FileLock\n"
        "with FileLock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(2)\n"
    )
    lock = str(tmp_path / "local-model.lock")
    holder = subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    began = time.monotonic()
    copy_converted(tmp_path)
    assert local_model.load(settings, None).embed(EmbedRequest(["text"], ""), UNBOUNDED).rows.shape == (
        1,
        384,
    )
    assert time.monotonic() - began > 1.0
    assert holder.wait() == 0
