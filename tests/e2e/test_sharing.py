"""Many processes and threads, one model: they share batches, and each gets its own answers."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

import embeddingClient
from embeddingClient import EmbeddingClient
from tests.processes import LONG, SRC, ModelServer, free_port, run_python, wait_for

WORKER = """
import sys, threading
import numpy as np
from embeddingClient import get_embedding_model
number, calls = int(sys.argv[1]), int(sys.argv[2])
model = get_embedding_model()
texts = [f"worker {number} asks {call}" for call in range(calls)]
singly = np.stack([model.encode(text) for text in texts])
together = model.encode(texts)
cosines = (singly * together).sum(1)
assert cosines.min() > 0.9999, cosines.min()
heavy = [name for name in ("torch", "transformers", "faiss", "sentence_transformers") if name in sys.modules]
assert not heavy, heavy
np.save(sys.argv[3], together)
"""


#: Processes that call at the same time.
PROCESSES = 16 if LONG else 8


def test_many_processes_share_batches_and_each_gets_its_own(
    server: ModelServer, model: EmbeddingClient, reference: Any, tmp_path: Path
) -> None:
    before = model.stats()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(number), "40", str(tmp_path / f"{number}.npy")],
            env=server.environment(EMBEDDING_FALLBACK="none"),
        )
        for number in range(PROCESSES)
    ]
    assert [worker.wait(120) for worker in workers] == [0] * PROCESSES
    after = model.stats()
    assert after["shared_batches"] > before["shared_batches"]
    assert after["largest_batch_callers"] >= 4
    singles = after["total_requests"] - before["total_requests"]
    assert after["batches"] - before["batches"] < singles
    for number in range(PROCESSES):
        expected = reference.encode([f"worker {number} asks {call}" for call in range(40)])
        assert (np.load(tmp_path / f"{number}.npy") * expected).sum(1).min() > 0.9995


def test_one_client_serves_many_threads(model: EmbeddingClient, reference: Any) -> None:
    texts = [f"thread {number}" for number in range(32)]
    expected = reference.encode(texts)

    def ask(number: int) -> float:
        return min(float(model.encode(texts[number]) @ expected[number]) for _ in range(10))

    with ThreadPoolExecutor(32) as threads:
        cosines = list(threads.map(ask, range(32)))
    assert min(cosines) > 0.9995


def _ask_in_child(text: str) -> Any:
    from embeddingClient import get_embedding_model

    return get_embedding_model().encode(text)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_children_of_every_start_method_work(
    server: ModelServer, reference: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment(EMBEDDING_FALLBACK="none").items():
        monkeypatch.setenv(name, value)
    # A forked child has its parent's client, which another test may have created with its own settings.
    monkeypatch.setattr(embeddingClient, "_clients", {})
    with multiprocessing.get_context(method).Pool(3) as pool:
        texts = [f"{method} {number}" for number in range(9)]
        rows = np.stack(pool.map(_ask_in_child, texts))
    assert (rows * reference.encode(texts)).sum(1).min() > 0.9995


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_parent_and_forked_children_do_not_share_a_connection(server: ModelServer) -> None:
    code = """
import os
import numpy as np
from embeddingClient import get_embedding_model
model = get_embedding_model()
mine = model.encode("the parent's text")
pids = []
for number in range(4):
    pid = os.fork()
    if pid == 0:
        expected = model.encode(f"child {number}")
        good = all(model.encode(f"child {number}") @ expected > 0.9999 for _ in range(50))
        os._exit(0 if good else 1)
    pids.append(pid)
good = all(model.encode("the parent's text") @ mine > 0.9999 for _ in range(50))
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
assert good and codes == [0, 0, 0, 0], (good, codes)
print(model.health()["state"])
"""
    assert run_python(code, server.environment(EMBEDDING_FALLBACK="none")).strip() == "connected"


def test_a_fork_while_other_threads_are_in_a_call(server: ModelServer) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    code = """
import os, threading
from embeddingClient import get_embedding_model
model = get_embedding_model()
stop = threading.Event()
def ask():
    while not stop.is_set():
        model.encode("from a thread")
threads = [threading.Thread(target=ask) for _ in range(6)]
for thread in threads: thread.start()
codes = []
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if model.encode("from the child").shape == (384,) else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
stop.set()
for thread in threads: thread.join()
assert codes == [0] * 10, codes
"""
    run_python(code, server.environment(EMBEDDING_FALLBACK="none"))


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn does not run on Windows")
def test_gunicorn_with_preload_after_the_parent_has_used_the_client(
    server: ModelServer, tmp_path: Path, reference: Any
) -> None:
    (tmp_path / "preloaded.py").write_text(
        "from app import create_app\n"
        "from embeddingClient import get_embedding_model\n"
        "get_embedding_model().encode('used before the fork')\n"
        "app = create_app()\n"
    )
    port = free_port()
    gunicorn = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--preload", "--workers", "4", "--threads", "4",
         "--bind", f"127.0.0.1:{port}", "--chdir", str(tmp_path), "preloaded:app"],
        env=server.environment(EMBEDDING_FALLBACK="none", PYTHONPATH=f"{SRC}{os.pathsep}{tmp_path}"),
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _answers(f"{url}/health"), 60, "gunicorn")
        texts = [f"request {number}" for number in range(60)]

        def post(text: str) -> list[float]:
            return list(
                requests.post(f"{url}/embed", json={"texts": [text]}, timeout=60).json()["embeddings"][0]
            )

        with ThreadPoolExecutor(16) as threads:
            rows = np.array(list(threads.map(post, texts)))
        assert (rows * reference.encode(texts)).sum(1).min() > 0.9995
    finally:
        gunicorn.terminate()
        gunicorn.wait(30)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def test_an_interrupted_call_s_answer_is_never_another_call_s(model: EmbeddingClient, reference: Any) -> None:
    """A call that stops waiting leaves no answer behind for the next call on its thread."""
    texts = [f"interrupted {number}" for number in range(20)]
    expected = reference.encode(texts)
    for text, row in zip(texts, expected, strict=True):
        with pytest.raises(TimeoutError):
            model.encode(["a long text " * 200] * 400, timeout=0.02)
        assert float(model.encode(text) @ row) > 0.9995


def test_callers_that_leave_are_not_computed_for(server: ModelServer, model: EmbeddingClient) -> None:
    before = model.stats()
    started = threading.Barrier(9)

    def leave() -> None:
        with server.client(EMBEDDING_FALLBACK="none") as client:
            client.encode("connect")
            started.wait()
            with pytest.raises(TimeoutError):
                client.encode([f"{number} " * 250 for number in range(500)], timeout=0.3)

    threads = [threading.Thread(target=leave) for _ in range(8)]
    for thread in threads:
        thread.start()
    started.wait()
    for thread in threads:
        thread.join()

    def dropped() -> int:
        after = model.stats()
        return int(after["expired"] + after["abandoned"] - before["expired"] - before["abandoned"])

    wait_for(dropped, 30, "calls to be dropped")
    wait_for(lambda: model.get_active_operations_count() == 0, 30, "the server's queue to be empty")
    assert model.stats()["waiting_tokens"] == 0
