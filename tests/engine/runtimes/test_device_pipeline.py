"""The pipeline: each batch gets its own vectors, however the device times its work.
A failed batch leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedshare.engine.runtimes.bucketing import Shapes, plan
from embedshare.engine.runtimes.device_pipeline import SLOTS, DeviceStream, Pipeline, PlainStream
from tests.engine.runtimes.device_fake import LateDevice, LateStream

LIMIT_S = 20.0
POISON = 66_666
FIXED = Shapes(longest=64, launch_tokens=256, free_tokens=32, fixed=True)
EXACT = FIXED._replace(fixed=False)
batches_of_lengths = st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=20), min_size=1, max_size=12)


def forward(integers: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    """Return the sum, the number and the last of each row's tokens."""
    lengths, ids = integers[:rows], integers[rows:].view(rows, width)
    assert (ids != POISON).all(), "poisoned"
    present = torch.arange(width) < lengths[:, None]
    last = ids.gather(1, lengths[:, None].long() - 1)[:, 0]
    return torch.stack([(ids * present).sum(1), lengths, last], 1).float()


def expected(sequences: list[list[int]]) -> np.ndarray:
    return np.array([[sum(ids), len(ids), ids[-1]] for ids in sequences], np.float32)


def texts(lengths: list[int], seed: int) -> list[list[int]]:
    """Return sequences of these lengths, the longest first, all different."""
    dice = np.random.default_rng(seed)
    return [dice.integers(2, 30_000, length).tolist() for length in sorted(lengths, reverse=True)]


def pipeline(
    queue: DeviceStream | None = None, shapes: Shapes = FIXED, most_graphs: int = 8, run: Callable = forward
) -> Pipeline:
    return Pipeline(queue or PlainStream("cpu"), run, shapes, 3, padding_id=7, most_graphs=most_graphs)


def vectors(ours: Pipeline, sequences: list[list[int]], shapes: Shapes = FIXED) -> np.ndarray:
    return ours.run(sequences, plan([len(ids) for ids in sequences], shapes))


def assert_works(ours: Pipeline) -> None:
    """Fail unless both slots are free and working."""
    with ThreadPoolExecutor(2 * SLOTS) as threads:
        batches = [texts([5, 9, 30], seed) for seed in range(4 * SLOTS)]
        for found, batch in zip(threads.map(lambda one: vectors(ours, one), batches), batches, strict=True):
            np.testing.assert_array_equal(found, expected(batch))


@pytest.mark.parametrize("shapes", [FIXED, EXACT])
@given(batches=batches_of_lengths)
def test_each_text_gets_its_vector(shapes: Shapes, batches: list[list[int]]) -> None:
    ours = pipeline(shapes=shapes)
    for seed, lengths in enumerate(batches):
        sequences = texts(lengths, seed)
        np.testing.assert_array_equal(vectors(ours, sequences, shapes), expected(sequences))


@settings(max_examples=60)
@given(batches=batches_of_lengths, seed=st.integers(0, 10_000), callers=st.integers(1, 3))
def test_vectors_are_right_whatever_order_a_device_works_in(
    batches: list[list[int]], seed: int, callers: int
) -> None:
    ours = pipeline(LateStream(LateDevice(seed)))
    work = [texts(lengths, number) for number, lengths in enumerate(batches)]
    with ThreadPoolExecutor(callers) as threads:
        for found, batch in zip(threads.map(lambda one: vectors(ours, one), work), work, strict=True):
            np.testing.assert_array_equal(found, expected(batch))


def test_what_is_returned_is_the_callers_own() -> None:
    ours = pipeline()
    first = vectors(ours, texts([4, 3], 1))
    kept = first.copy()
    for seed in range(2 * SLOTS):
        vectors(ours, texts([9, 8, 7], seed))
    np.testing.assert_array_equal(first, kept)
    assert first.flags.c_contiguous
    assert first.flags.owndata


def test_a_shape_is_captured_when_it_comes_again_and_only_so_many_are() -> None:
    queue = LateStream(LateDevice(1))
    ours = pipeline(queue, most_graphs=2)
    captured = []
    for length in (5, 5, 5, 20, 40, 40, 60, 60, 20, 20):  # widths 16, 16, 16, 32, 64, ...
        sequences = texts([length], length)
        np.testing.assert_array_equal(vectors(ours, sequences), expected(sequences))
        captured.append(queue.captured)
    assert captured == [0, 1, 1, 1, 1, 2, 2, 2, 2, 2]


def test_a_forward_that_cannot_be_captured_is_called() -> None:
    queue = LateStream(LateDevice(1))
    ours = pipeline(queue, most_graphs=0)
    for seed in range(3):
        sequences = texts([5, 5], seed)
        np.testing.assert_array_equal(vectors(ours, sequences), expected(sequences))
    assert queue.captured == 0


def test_batches_that_outgrow_the_slots_are_right() -> None:
    ours = pipeline()
    for count in (1, 3000, 2, 5000):
        sequences = texts([3] * count, count)
        np.testing.assert_array_equal(vectors(ours, sequences), expected(sequences))


@pytest.mark.parametrize("failures", [1, 2 * SLOTS])
def test_a_batch_that_fails_leaves_its_slot_to_others(failures: int) -> None:
    ours = pipeline()
    for _ in range(failures):
        with pytest.raises(AssertionError, match="poisoned"):
            vectors(ours, [[5] * 40, [5, POISON, 5]])
    assert_works(ours)


def test_an_interrupt_while_a_batch_computes_leaves_its_slot_to_others() -> None:
    interrupts = iter([True])

    def interrupted(integers: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        if next(interrupts, False):
            raise KeyboardInterrupt
        return forward(integers, rows, width)

    ours = pipeline(run=interrupted)
    with pytest.raises(KeyboardInterrupt):
        vectors(ours, [[5, 6]])
    assert_works(ours)


def test_one_batch_computes_at_a_time() -> None:
    inside, go_on = threading.Semaphore(0), threading.Event()
    running: list[int] = []
    most: list[int] = []

    def slow(integers: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        running.append(1)
        most.append(len(running))
        inside.release()
        assert go_on.wait(LIMIT_S)
        running.pop()
        return forward(integers, rows, width)

    ours = pipeline(run=slow)
    batches = [texts([5, 9], seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        calls = [threads.submit(vectors, ours, batch) for batch in batches]
        assert inside.acquire(timeout=LIMIT_S)
        go_on.set()
        for call, batch in zip(calls, batches, strict=True):
            np.testing.assert_array_equal(call.result(LIMIT_S), expected(batch))
    assert max(most) == 1
