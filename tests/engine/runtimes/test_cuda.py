"""On a real GPU: graphs match the plain run, from any thread, and the runtime survives a lack of memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from embedshare.calls import EmbedRequest
from embedshare.engine import weights
from embedshare.engine.runtimes import embedder as embedders
from embedshare.engine.runtimes.bucketing import Shapes, plan
from embedshare.engine.runtimes.cuda import CudaStream, ModelThread
from embedshare.engine.runtimes.device_pipeline import Pipeline
from embedshare.engine.runtimes.padded import PaddedRuntime
from embedshare.errors import OutOfMemory
from embedshare.providers.local import Local, release_memory
from embedshare.settings import Settings
from tests.engine.runtimes.test_padded import mixed
from tests.engine.test_loading import smallest_cosine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
MIB = 1 << 20


def load(dtype: str) -> PaddedRuntime:
    model = embedders.load(weights.find("all-MiniLM-L6-v2"), "cuda", trust_remote_code=False)
    return PaddedRuntime(model, dtype)


@pytest.fixture(scope="module")
def runtime() -> Iterator[PaddedRuntime]:
    yield load("float32")
    gc.collect()


@pytest.fixture(scope="module")
def reference() -> Any:
    return embedders.load(weights.find("all-MiniLM-L6-v2"), "cuda", trust_remote_code=False)


def batches() -> list[list[list[int]]]:
    """Batches from one short query to more than one launch can hold."""
    return [
        mixed(1, most=8, count=1), mixed(2, most=30, count=16), mixed(3, most=256, count=60),
        mixed(4, most=16, count=1500), [[2000 + text] * 16 for text in range(1024)], [[101, 102]],
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(6))
def test_a_graph_gives_what_the_plain_run_and_the_model_itself_give(
    runtime: PaddedRuntime, reference: Any, number: int
) -> None:
    sequences = batches()[number]
    plainly = runtime.run(sequences)  # plain for the shapes that the warm-up has not captured
    captured = [runtime.run(sequences) for _ in range(3)]
    expected = np.concatenate(
        [embedders.plain_forward(reference, sequences[at : at + 64]) for at in range(0, len(sequences), 64)]
    )
    for found in (plainly, *captured):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(captured[0], captured[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees(reference: Any, dtype: str) -> None:
    runtime = load(dtype)
    sequences = mixed(5, most=256, count=50)
    found = [runtime.run(sequences) for _ in range(2)][-1]
    assert np.isfinite(found).all()
    assert smallest_cosine(found, embedders.plain_forward(reference, sequences)) > 0.999


def test_threads_with_small_and_large_batches_get_what_one_gets(runtime: PaddedRuntime) -> None:
    work = [batches()[number % 6] for number in range(60)]
    expected = {number: runtime.run(batch) for number, batch in enumerate(batches())}
    with ThreadPoolExecutor(6) as threads:
        for number, found in enumerate(threads.map(runtime.run, work)):
            np.testing.assert_allclose(found, expected[number % 6], atol=1e-4)


def test_shapes_are_captured_while_other_threads_replay(reference: Any) -> None:
    fresh = load("float32")
    large = [mixed(seed, most=256, count=20 + seed) for seed in range(30)]  # each batch has a new shape
    small = [mixed(100 + seed, most=16, count=2) for seed in range(300)]
    work = [*large, *small, *large]
    expected = [embedders.plain_forward(reference, batch) for batch in work]
    with ThreadPoolExecutor(4) as threads:
        for found, vectors in zip(threads.map(fresh.run, work), expected, strict=True):
            np.testing.assert_allclose(found, vectors, atol=1e-4)


def test_lack_of_memory_is_said_and_survived() -> None:
    runtime = load("bfloat16")
    query, large = [[101, 2000, 102]], [[2000 + text % 500] * 256 for text in range(64)]
    expected = runtime.run(query)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 16 * MIB) / total)
    try:
        for _ in range(3):
            with pytest.raises(OutOfMemory):
                runtime.run(large)
            np.testing.assert_array_equal(runtime.run(query), expected)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for _ in range(3):
        assert np.isfinite(runtime.run(large)).all()


def test_a_forward_that_waits_for_the_device_runs_without_graphs() -> None:
    def waits(integers: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        lengths, ids = integers[:rows], integers[rows:].view(rows, width)
        assert int(lengths.sum().item()) >= rows  # .item() waits
        return torch.stack([lengths, ids[:, 0]], 1).float()

    shapes = Shapes(longest=64, launch_tokens=1024, free_tokens=64, fixed=True)
    ours = Pipeline(CudaStream(ModelThread("cuda:0"), urgent=True), waits, shapes, 2, padding_id=0)
    for length in (5, 5, 5, 20, 20, 40, 40, 60, 60, 60):
        sequences = [[7] * length, [9]]
        found = ours.run(sequences, plan([length, 1], shapes))
        np.testing.assert_array_equal(found, [[length, 7], [1, 9]])


def test_the_engine_chooses_half_precision_and_agrees(reference: Any) -> None:
    engine = Local.load(Settings(), "auto")
    assert engine.description.device == "cuda:0"
    assert engine.description.dtype in ("bfloat16", "float16")
    texts = ["one model, many workers", "word " * 300, "a"]
    expected = embedders.plain_forward(reference, engine.tokenize(EmbedRequest(texts, "")))
    assert smallest_cosine(engine.embed(EmbedRequest(texts, "")).rows, expected) > 0.999


def test_an_engine_that_nobody_holds_gives_its_memory_back() -> None:
    load("float16")
    release_memory()
    before = torch.cuda.memory_reserved()
    for _ in range(2):
        runtime = load("float16")
        runtime.run(mixed(6, most=256, count=200))
        del runtime
        release_memory()
    workspaces = 2 * 2 * 32 * MIB  # torch may keep a cuBLAS workspace for each stream of each load
    assert torch.cuda.memory_reserved() <= before + workspaces + 16 * MIB
