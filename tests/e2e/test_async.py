"""`await model.aencode(...)`: correct vectors, an event loop that stays free, and cancellable calls."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import DeadlineExceeded, InvalidInput
from tests.processes import ModelServer

TEXTS = [f"awaited text {number}" for number in range(100)]


def test_a_hundred_calls_at_once_get_their_own_vectors(model: EmbeddingClient, reference: Any) -> None:
    async def ask() -> list[np.ndarray]:
        return await asyncio.gather(*(model.aencode(text) for text in TEXTS))

    assert (np.stack(asyncio.run(ask())) * reference.encode(TEXTS)).sum(1).min() > 0.9995


def test_options_and_errors_are_those_of_encode(model: EmbeddingClient) -> None:
    async def ask() -> None:
        rows = await model.aencode(TEXTS[:3], normalize_embeddings=True, truncate_dim=64)
        np.testing.assert_allclose(
            rows, model.encode(TEXTS[:3], normalize_embeddings=True, truncate_dim=64), atol=2e-2
        )
        with pytest.raises(InvalidInput):
            await model.aencode([1, 2])
        with pytest.raises(DeadlineExceeded):
            await model.aencode("word " * 200, timeout=1e-6)

    asyncio.run(ask())


def test_the_event_loop_goes_on_while_a_long_list_is_embedded(model: EmbeddingClient) -> None:
    async def ask() -> tuple[float, int]:
        bulk = asyncio.create_task(model.aencode([f"{text} " + "word " * 80 for text in TEXTS] * 5))
        longest, turns, last = 0.0, 0, time.monotonic()
        while not bulk.done():
            await asyncio.sleep(0.005)
            now = time.monotonic()
            longest, turns, last = max(longest, now - last), turns + 1, now
        assert (await bulk).shape == (500, 384)
        return longest, turns

    longest, turns = asyncio.run(ask())
    assert turns > 10
    assert longest < 1.0  # a blocked loop would stop for the whole list


def test_a_call_that_is_cancelled_leaves_its_caller_at_once_and_the_client_whole(tmp_path: Path) -> None:
    slow = ModelServer(tmp_path)
    slow.command = [
        sys.executable, "-c",
        "import sys, time, modelServer\n"
        "from embedshare.engine.runtimes.openvino import OpenVinoRuntime\n"
        "run = OpenVinoRuntime.run\n"
        "OpenVinoRuntime.run = lambda self, ids: (time.sleep(1.0 * (len(ids[0]) > 100)), run(self, ids))[1]\n"
        "sys.exit(modelServer.main())\n",
    ]  # fmt: skip
    slow.start()

    async def ask(client: EmbeddingClient) -> None:
        quick = await client.aencode("quick")
        began = time.monotonic()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.aencode("word " * 200), 0.2)
        assert time.monotonic() - began < 0.9
        assert float((await client.aencode("quick")) @ quick) > 0.999

    with slow.client(EMBEDDING_FALLBACK="none") as client:
        asyncio.run(ask(client))
    assert slow.stop() == 0


def _ask_in_child(model: EmbeddingClient, expected: np.ndarray) -> None:
    vector = asyncio.run(model.aencode(TEXTS[0]))
    assert float(vector @ expected) > 0.999


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_child_awaits_with_threads_of_its_own(model: EmbeddingClient) -> None:
    expected = asyncio.run(model.aencode(TEXTS[0]))
    child = multiprocessing.get_context("fork").Process(target=_ask_in_child, args=(model, expected))
    child.start()
    child.join(30)
    assert child.exitcode == 0
