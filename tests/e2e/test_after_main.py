"""Work continues after the main thread has ended: in threads that outlive it, and in atexit handlers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import ModelServer, copy_converted, run_python

#: Long lists and awaited calls, from two threads at once after the main thread has ended, and at exit.
LATE = """
import asyncio, atexit, threading, traceback
import numpy as np
from embeddingClient import EmbeddingClient

model = EmbeddingClient(max_retries=1)
PREPARE
texts = [f"text {number}" for number in range(600)]

async def awaited():
    return await asyncio.gather(*(model.aencode(text) for text in texts[:20]))

def work(where):
    try:
        rows = model.encode(texts)
        assert rows.shape == (600, 384), rows.shape
        for at, vector in enumerate(asyncio.run(awaited())):
            assert vector @ rows[at] > 0.999, at
        print(f"{where} {model.client_stats()['state']}\\n", end="", flush=True)  # whole, from two threads
    except BaseException:
        traceback.print_exc()

def late():
    threading.main_thread().join()
    work("a thread")

atexit.register(work, "atexit")
for _ in range(2):
    threading.Thread(target=late).start()
"""
WARM = LATE.replace("PREPARE", 'model.encode("warm")')
COLD = LATE.replace("PREPARE", "")


def lines(said: str) -> list[str]:
    return said.splitlines()


def test_long_lists_and_awaited_calls_are_answered_by_the_server(server: ModelServer) -> None:
    said = run_python(WARM, server.environment(EMBEDDING_FALLBACK="none"))
    assert lines(said) == ["a thread connected", "a thread connected", "atexit connected"]


@pytest.mark.parametrize("program", [WARM, COLD], ids=["loaded before", "loaded after"])
def test_a_local_model_answers_too_and_loads_even_then(
    server: ModelServer, tmp_path: Path, program: str
) -> None:
    copy_converted(tmp_path)  # the graph that the server has converted
    env = ModelServer(tmp_path, EMBEDDING_CACHE_DIR=str(tmp_path)).environment(USE_IPC_EMBEDDING="false")
    assert lines(run_python(program, env)) == ["a thread local", "a thread local", "atexit local"]


def test_an_unreachable_server_is_stood_in_for_at_exit(server: ModelServer, tmp_path: Path) -> None:
    copy_converted(tmp_path)  # the graph that the server has converted
    env = ModelServer(tmp_path, EMBEDDING_CACHE_DIR=str(tmp_path)).environment()
    assert lines(run_python(COLD, env))[-1] == "atexit falling back"
