"""Processes and threads that start while the client is in use: each has its own connections."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from embeddingClient import EmbeddingClient
from tests.processes import SRC, ModelServer, free_port, key_elsewhere, wait_for

TEXTS = [f"text number {number} of a family" for number in range(64)]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture(scope="module")
def expected(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forks") / "expected.npy"
    np.save(path, reference.encode(TEXTS))
    return path


def run_script(code: str, server: ModelServer, folder: Path, *arguments: str) -> str:
    """Run a program from a file, which spawned children can import; return its output."""
    script = folder / "program.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(TEXTS), *arguments],
        env=server.environment(EMBEDDING_FALLBACK="none"), capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


APP = """
import json, os
import psutil
from embeddingClient import get_embedding_model
from urllib.parse import parse_qs

model = get_embedding_model()
model.encode("used before the fork")
SERVER = int(os.environ["EMBEDDING_SERVER_PORT"])

def app(environ, start_response):
    text = parse_qs(environ["QUERY_STRING"])["text"][0]
    row = model.encode(text)
    ours = psutil.Process().net_connections("tcp")
    ports = [one.laddr.port for one in ours if one.raddr and one.raddr.port == SERVER]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"pid": os.getpid(), "row": row.tolist(), "ports": ports}).encode()]
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn does not run on Windows")
def test_gunicorn_s_preloaded_workers_have_connections_of_their_own(
    server: ModelServer, expected: Path, tmp_path: Path
) -> None:
    (tmp_path / "preloaded.py").write_text(APP)
    port, rows = free_port(), np.load(expected)
    said = tmp_path / "gunicorn.log"
    with said.open("wb") as log:
        gunicorn = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--preload", "--workers", "4", "--threads", "2",
             "--bind", f"127.0.0.1:{port}", "--chdir", str(tmp_path), "preloaded:app"],
            env=server.environment(
                EMBEDDING_FALLBACK="none",
                PYTHONPATH=f"{SRC}{os.pathsep}{tmp_path}",
                EMBEDDING_AUTHKEY_FILE=str(key_elsewhere(server, tmp_path)),  # connections by TCP have ports
            ),
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    ports_of: defaultdict[int, set[int]] = defaultdict(set)
    cosines: list[float] = []

    def ask(number: int) -> None:
        answer = requests.get(f"http://127.0.0.1:{port}/", {"text": TEXTS[number]}, timeout=30).json()
        cosines.append(float(np.array(answer["row"]) @ rows[number]))
        ports_of[answer["pid"]].update(answer["ports"])

    def all_have_answered() -> bool:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(ask, range(64)))
        return len(ports_of) == 4

    try:
        wait_for(
            lambda: b"Booting worker" in said.read_bytes() or gunicorn.poll() is not None, 60, "gunicorn"
        )
        wait_for(all_have_answered, 60, "answers of all workers")
        parents = {
            one.laddr.port
            for one in psutil.Process(gunicorn.pid).net_connections("tcp")
            if one.raddr and one.raddr.port == server.port
        }
    finally:
        gunicorn.terminate()
        assert gunicorn.wait(30) == 0, said.read_text()
    used = [port for ports in (*ports_of.values(), parents) for port in ports]
    print(f"\n{len(cosines)} answers of {len(ports_of)} workers on {len(used)} connections")
    assert min(cosines) > 0.9995
    assert len(parents) == 1
    assert len(used) == len(set(used))


def test_sixty_four_threads_at_once_have_a_connection_each_at_most(
    server: ModelServer, model: EmbeddingClient, expected: Path
) -> None:
    assert server.process is not None
    rows, began = np.load(expected), threading.Barrier(65)
    held = psutil.Process(server.process.pid)
    before = len(held.net_connections("tcp"))

    def ask(number: int) -> float:
        began.wait(30)
        return min(float(model.encode(TEXTS[number]) @ rows[number]) for _ in range(10))

    with ThreadPoolExecutor(64) as threads:
        asking = [threads.submit(ask, number) for number in range(64)]
        began.wait(30)
        most = 0
        while not all(future.done() for future in asking):
            most = max(most, len(held.net_connections("tcp")) - before)
    print(f"\nat most {most} connections")
    assert min(future.result() for future in asking) > 0.9995
    assert most <= 64
    wait_for(lambda: len(held.net_connections("tcp")) <= before, 30, "the end of the threads' connections")


CHILDREN = """
import concurrent.futures, json, multiprocessing, sys
import numpy as np
from embeddingClient import get_embedding_model

def check(arguments):
    texts, path, first = arguments
    rows, model = np.load(path), get_embedding_model()
    for number in range(first, len(texts), 4):
        cosine = float(model.encode(texts[number]) @ rows[number])
        assert cosine > 0.9995, (number, cosine)
    return len(texts[first::4])

if __name__ == "__main__":
    texts, path, method, how = json.loads(sys.argv[1]), *sys.argv[2:]
    context = multiprocessing.get_context(method)
    shares = [(texts, path, first) for first in range(4)]
    assert sum(map(check, shares)) == 64
    if how == "executor":
        with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as pool:
            assert sum(pool.map(check, shares)) == 64
    else:
        children = [context.Process(target=check, args=(share,)) for share in shares]
        for child in children:
            child.start()
        assert check(shares[0]) == 16  # the parent calls beside them
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0] * 4
    assert sum(map(check, shares)) == 64
    print("all right")
"""


@pytest.mark.parametrize("how", ["processes", "executor"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_a_parent_that_has_called_get_their_own_vectors(
    server: ModelServer, expected: Path, tmp_path: Path, method: str, how: str
) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {method}")
    assert run_script(CHILDREN, server, tmp_path, str(expected), method, how) == "all right\n"


FORKING = """
import faulthandler, json, os, sys, threading
import numpy as np
from embeddingClient import get_embedding_model
from embedshare.errors import DeadlineExceeded

texts, rows = json.loads(sys.argv[1]), np.load(sys.argv[2])
model, stop = get_embedding_model(), threading.Event()

def check(number):
    number %= len(texts)
    cosine = float(model.encode(texts[number]) @ rows[number])
    assert cosine > 0.9995, (number, cosine)

def call_on_new_connections(first):
    for number in range(first, 1 << 30, 8):
        if stop.is_set():
            return
        threads = [threading.Thread(target=check, args=(number + more,)) for more in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

def give_up(first):
    while not stop.is_set():
        try:
            model.encode(texts * 4, timeout=0.01)
        except DeadlineExceeded:
            pass
        check(first)

def call_long_lists(first):
    while not stop.is_set():
        assert float(model.encode(texts * 9)[-1] @ rows[-1]) > 0.9995

kinds = call_on_new_connections, call_on_new_connections, give_up, call_long_lists

threads = [threading.Thread(target=kind, args=(number,)) for number, kind in enumerate(kinds)]
for thread in threads:
    thread.start()
codes = []
for fork in range(10):
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(20, exit=True)  # where a child hangs
        code = 1
        try:
            for number in range(8):
                check(fork + number)
            if fork % 3 == 0:
                assert float(model.encode(texts * 9)[-1] @ rows[-1]) > 0.9995
            code = 0
        finally:
            os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    check(fork)
stop.set()
for thread in threads:
    thread.join()
assert codes == [0] * 10, codes
"""


@forks
def test_children_that_are_forked_in_mid_call_get_their_own_vectors(
    server: ModelServer, expected: Path, tmp_path: Path
) -> None:
    """The children fork while other threads connect, time out and send long lists."""
    run_script(FORKING, server, tmp_path, str(expected))


IMPORTS = """
import json, sys
from embeddingClient import get_embedding_model

texts, model = json.loads(sys.argv[1]), get_embedding_model()
before = set(sys.modules)
model.encode(texts[0])
model.encode(texts)
model.encode(texts * 9)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_no_call_imports_anything(server: ModelServer, tmp_path: Path) -> None:
    """A child forked during another thread's import would wait forever for the import's lock."""
    assert json.loads(run_script(IMPORTS, server, tmp_path)) == []
