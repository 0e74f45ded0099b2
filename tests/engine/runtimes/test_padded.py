"""The padded runtime matches SentenceTransformer in every shape, and no host waits for its device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from embedshare.calls import EmbedRequest
from embedshare.engine import loading, weights
from embedshare.engine.runtimes import embedder as embedders
from embedshare.engine.runtimes.bucketing import Shapes, plan
from embedshare.engine.runtimes.device_pipeline import Pipeline
from embedshare.engine.runtimes.padded import PaddedForward, PaddedRuntime, Sizes
from embedshare.errors import OutOfMemory
from tests.engine.runtimes.device_fake import TapeStream
from tests.engine.test_loading import TEXTS, settings_for, small_model, smallest_cosine

#: A GPU's sizes: fixed shapes, two batches at once.
AS_ON_GPU = Sizes(
    max_batches_per_lane=2, interactive_budget=128, bulk_budget=1024, free_tokens=64, fixed=True
)
MODELS = [
    ("Bert", "mean"), ("Bert", "cls"), ("Roberta", "mean"), ("DistilBert", "max"), ("MPNet", "mean"),
    ("Bert", "lasttoken"), ("Bert", "weightedmean"),
]  # fmt: skip
#: Operations that a stream under capture refuses: they bring a value, or the count of trues, to the host.
_WAIT = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select")
WAITS = [f"aten::{name}" for name in _WAIT]


def mixed(seed: int, most: int = 64, count: int = 40) -> list[list[int]]:
    dice = np.random.default_rng(seed)
    return [dice.integers(1000, 30_000, length).tolist() for length in dice.integers(2, most + 1, count)]


@pytest.fixture(scope="module")
def default_model() -> Any:
    return embedders.load(weights.find("all-MiniLM-L6-v2"), "cpu", trust_remote_code=False)


#: The models of every run, one for each kind of sizes; EMBEDSHARE_LONG=1 tries all.
QUICK = [("Roberta", "mean", None), ("MPNet", "mean", AS_ON_GPU), ("Bert", "lasttoken", AS_ON_GPU)]


@pytest.mark.parametrize(
    ("architecture", "pooling", "sizes"),
    [
        pytest.param(*model, sizes, marks=() if (*model, sizes) in QUICK else pytest.mark.long)
        for model in MODELS
        for sizes in (None, AS_ON_GPU)
    ],
)
def test_vectors_are_those_of_the_models_own_forward(
    tmp_path: Path, architecture: str, pooling: str, sizes: Sizes | None
) -> None:
    model = embedders.load(small_model(tmp_path, architecture, pooling), "cpu", trust_remote_code=False)
    runtime = PaddedRuntime(model, "float32", sizes)
    for seed in (1, 1, 2):  # the second run of a shape replays its graph
        sequences = mixed(seed)
        expected = np.concatenate([embedders.plain_forward(model, [ids]) for ids in sequences])
        found = runtime.run(sequences)
        np.testing.assert_allclose(found, expected, atol=2e-5)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous


def test_texts_longer_than_a_models_local_attention_are_right(tmp_path: Path) -> None:
    model = embedders.load(small_model(tmp_path, "ModernBert", "mean"), "cpu", trust_remote_code=False)
    sequences = mixed(3)
    everywhere = embedders.plain_forward(model, sequences)
    model[0].auto_model.config.local_attention = 8
    expected = embedders.plain_forward(model, sequences)
    assert smallest_cosine(everywhere, expected) < 0.99
    found = PaddedRuntime(model, "float32", AS_ON_GPU).run(sequences)
    assert smallest_cosine(found, expected) > 0.99999


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_default_model_agrees_in_fixed_shapes_and_in_exact_ones(default_model: Any, dtype: str) -> None:
    sequences = mixed(4, most=200, count=12)
    expected = embedders.plain_forward(default_model, sequences)
    for sizes in (None, AS_ON_GPU):
        model = embedders.load(weights.find("all-MiniLM-L6-v2"), "cpu", trust_remote_code=False)
        runtime = PaddedRuntime(model, dtype, sizes)
        least = 0.99999 if dtype == "float32" else 0.999
        assert smallest_cosine(runtime.run(sequences), expected) > least


def test_the_shapes_of_queries_are_captured_before_the_first_comes(
    default_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[tuple[int, int]] = []
    original = Pipeline._first_or_captured

    def noted(pipeline: Pipeline, rows: int, width: int) -> Any:
        captured.append((rows, width))
        return original(pipeline, rows, width)

    monkeypatch.setattr(Pipeline, "_first_or_captured", noted)
    runtime = PaddedRuntime(default_model, "float32", Sizes.of("cuda"))
    runtime._warm_up()
    assert len(captured) == 2 * len(set(captured))
    captured.clear()
    for sequences in ([[5] * 7], [[5] * 20], [[5] * 250], [[5] * 20, [6] * 7, [7] * 9], [[5] * 12] * 16):
        runtime.run(sequences)
    assert captured == []


def test_many_threads_get_what_one_gets(default_model: Any) -> None:
    runtime = PaddedRuntime(default_model, "float32", AS_ON_GPU)
    batches = [mixed(seed, most=40, count=1 + seed % 5) for seed in range(24)]
    expected = [runtime.run(batch) for batch in batches]
    with ThreadPoolExecutor(6) as threads:
        for found, alone in zip(threads.map(runtime.run, batches), expected, strict=True):
            np.testing.assert_allclose(found, alone, atol=1e-6)


class _Asked(TorchDispatchMode):  # type: ignore[misc]  # torch is not analysed
    """Record the operations that make a host wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name in ("aten::index", "aten::index_put_") and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        if name in WAITS or by_mask:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("architecture", "pooling"), [*MODELS, ("ModernBert", "mean")])
def test_operations_captured_of_one_batch_give_the_vectors_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, pooling: str
) -> None:
    """The graph keeps no length, mask or position of the captured batch."""
    from transformers.utils import import_utils

    model = embedders.load(small_model(tmp_path, architecture, pooling), "cpu", trust_remote_code=False)
    monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
    shapes = Shapes(longest=64, launch_tokens=1024, free_tokens=64, fixed=True)
    pipeline = Pipeline(TapeStream("cpu"), PaddedForward(model, "float32"), shapes, 24, padding_id=0)
    for seed in range(6):
        sequences = sorted(mixed(seed, count=12), key=len, reverse=True)
        found = pipeline.run(sequences, plan([len(ids) for ids in sequences], shapes))
        np.testing.assert_allclose(found, embedders.plain_forward(model, sequences), atol=2e-5)


@pytest.mark.parametrize(("architecture", "pooling"), [*MODELS, ("ModernBert", "mean")])
def test_nothing_in_a_captured_forward_waits_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, pooling: str
) -> None:
    """transformers detects a capture and then skips the operations that would wait."""
    from transformers.utils import import_utils

    model = embedders.load(small_model(tmp_path, architecture, pooling), "cpu", trust_remote_code=False)
    forward = PaddedForward(model, "float32")
    monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
    with _Asked() as asked, torch.inference_mode():
        forward(torch.ones(4 * 17, dtype=torch.int32), 4, 16)
    assert asked.waits == []


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError(), RuntimeError("not enough memory")],
)
def test_a_lack_of_memory_is_said_and_over(
    default_model: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    runtime = PaddedRuntime(default_model, "float32", AS_ON_GPU)
    expected = runtime.run([[5, 6], [7]])

    def fails(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(PaddedForward, "__call__", fails)
        for _ in range(5):
            with pytest.raises(OutOfMemory, match="no memory for 3 sequences"):
                runtime.run([[5] * 50, [6], [7]])
    np.testing.assert_array_equal(runtime.run([[5, 6], [7]]), expected)


def test_another_error_is_not_taken_for_a_lack_of_memory(default_model: Any) -> None:
    runtime = PaddedRuntime(default_model, "float32", AS_ON_GPU)
    with pytest.raises(IndexError):
        runtime.run([[10_000_000]])


def test_a_model_that_does_not_pack_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer

    from embedshare.providers.local import Local

    monkeypatch.setattr(embedders, "find_form", lambda *_: None)
    folder = small_model(tmp_path, "Bert", "mean")
    settings = settings_for(tmp_path, str(folder), runtime="torch")
    assert isinstance(loading.load(settings, "cpu", None).runtime, PaddedRuntime)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(
        Local.load(settings, "cpu").embed(EmbedRequest(TEXTS, "")).rows, expected, atol=2e-5
    )
