"""The logic around CUDA's calls, with stand-ins for them: where work runs, and the state after a failure."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from embedshare.engine.runtimes.bucketing import plan
from embedshare.engine.runtimes.cuda import CudaStream, ModelThread
from embedshare.engine.runtimes.device_pipeline import Pipeline
from tests.engine.runtimes.device_fake import Tape
from tests.engine.runtimes.test_device_pipeline import FIXED, expected, forward, texts

LIMIT_S = 10.0


class Stream(torch.cpu.Stream):  # type: ignore[misc]  # torch is not analysed
    def synchronize(self) -> None:
        """Do nothing: all work is done."""


class Cuda:
    """The calls of torch.cuda that the queue makes, on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails: list[Exception] = []  # the errors of the next captures
        self.captured = 0
        empty = torch.empty
        stand_ins = {
            "Stream": lambda device, priority: Stream(),
            "stream": lambda stream: torch.inference_mode(),
            "Event": lambda blocking: torch.cpu.Event(),
            "CUDAGraph": Tape,
            "graph": self.capture,
            "graph_pool_handle": object,
            "set_device": lambda device: None,
            "empty_cache": lambda: None,
        }
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch, "empty", lambda *shape, dtype, **_: empty(*shape, dtype=dtype))

    @contextlib.contextmanager
    def capture(self, tape: Tape, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.captured += 1
        with tape:
            yield
        if self.fails:
            raise self.fails.pop(0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def vectors(ours: Pipeline, lengths: list[int], seed: int) -> None:
    sequences = texts(lengths, seed)
    found = ours.run(sequences, plan([len(ids) for ids in sequences], FIXED))
    np.testing.assert_array_equal(found, expected(sequences))


def test_the_model_runs_in_one_thread_whoever_asks_and_graphs_replay(cuda: Cuda) -> None:
    ran_in: list[str] = []

    def noted(integers: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        ran_in.append(threading.current_thread().name)
        return forward(integers, rows, width)

    ours = Pipeline(CudaStream(ModelThread("cuda:0"), urgent=True), noted, FIXED, 3, padding_id=7)
    for seed in range(5):
        vectors(ours, [5, 9], seed)
    assert cuda.captured == 1
    assert ran_in == ["model_0"] * 3  # a plain run, the run before the capture, the capture


def test_a_forward_that_cannot_be_captured_is_tried_a_few_times(cuda: Cuda) -> None:
    cuda.fails = [RuntimeError("operation not permitted when stream is capturing")] * 20
    ours = Pipeline(CudaStream(ModelThread("cuda:0"), urgent=True), forward, FIXED, 3, padding_id=7)
    for seed, length in enumerate([5, 5, 5, 20, 20, 40, 40, 60, 60, 60]):
        vectors(ours, [length], seed)
    for seed in range(3):
        vectors(ours, [60, 60, 60], seed)
    assert cuda.captured == 3


def test_lack_of_memory_in_a_capture_is_raised_and_the_next_run_captures(cuda: Cuda) -> None:
    cuda.fails = [torch.OutOfMemoryError("CUDA out of memory")]
    ours = Pipeline(CudaStream(ModelThread("cuda:0"), urgent=False), forward, FIXED, 3, padding_id=7)
    vectors(ours, [5], 1)
    with pytest.raises(torch.OutOfMemoryError):
        vectors(ours, [5], 2)
    for seed in (3, 4):
        vectors(ours, [5], seed)
    assert cuda.captured == 2


def test_an_interrupt_comes_through_when_the_model_thread_is_done(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import Future

    thread, done = ModelThread("cuda:0"), threading.Event()

    def interrupted(future: Future[Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        thread.do(lambda: (threading.Event().wait(0.05), done.set()))
    assert done.is_set()


def test_an_error_leaves_nothing_of_the_batch_behind(cuda: Cuda) -> None:
    import gc
    import weakref

    kept: list[weakref.ref[torch.Tensor]] = []

    def fails() -> None:
        batch = torch.ones(3)
        kept.append(weakref.ref(batch))
        raise torch.OutOfMemoryError("CUDA out of memory")

    thread = ModelThread("cuda:0")
    gc.disable()
    try:
        with contextlib.suppress(torch.OutOfMemoryError):
            thread.do(fails)
        thread.do(lambda: None)  # the thread itself has dropped its reference
        assert kept[0]() is None
    finally:
        gc.enable()


def test_once_the_main_thread_has_ended_the_thread_that_asks_runs_the_model(cuda: Cuda) -> None:
    model = ModelThread("cuda:0")
    model._thread.shutdown()  # as the interpreter does at exit
    assert model.do(lambda: (threading.current_thread(), torch.is_inference_mode_enabled())) == (
        threading.current_thread(),
        True,
    )
