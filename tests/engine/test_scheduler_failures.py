"""The scheduler when its runtime fails: the affected calls get the error, and no other call is stuck."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from loguru import logger

from embedshare.errors import EmbedshareError, EngineFailed, OutOfMemory
from tests.engine.runtime_fake import (
    DIMENSION,
    HUGE,
    INTERRUPT,
    LIMIT_S,
    POISON,
    SLOW,
    Runtime,
    assert_works,
    compute,
    rows_of,
    scheduler,
    shared_batch,
    until,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger.disable("embedshare")  # failures log their tracebacks, hundreds here
    yield
    logger.enable("embedshare")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(40)
    yield pool
    pool.shutdown(wait=False, cancel_futures=True)


def test_out_of_memory_halves_until_it_fits_and_rows_stay_right() -> None:
    runtime = Runtime(fits=2)
    ours = scheduler(runtime)
    sequences = [[n] * n for n in range(1, 12)]
    np.testing.assert_array_equal(compute(ours, sequences), rows_of(sequences))
    assert ours.counts.sequences == 11
    assert ours.counts.out_of_memory >= 3


def test_time_computed_is_counted_once_for_each_batch_after_out_of_memory() -> None:
    now = [0.0]
    runtime = Runtime(fits=2)

    def run(sequences: list[list[int]]) -> np.ndarray:
        now[0] += 1.0
        return runtime(sequences)

    ours = scheduler(run, clock=lambda: now[0])
    assert ours.compute([[1], [2], [3], [4]], deadline=1e9)[2] == 2.0  # two halves that fit, 1 s each


def test_only_the_one_that_never_fits_fails_of_out_of_memory(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime)
    firsts = [1, 2, 3, HUGE, 5, 6, 7]
    for first, call in zip(firsts, shared_batch(runtime, ours, threads, firsts), strict=True):
        if first == HUGE:
            with pytest.raises(OutOfMemory):
                call.result(LIMIT_S)
        else:
            np.testing.assert_array_equal(call.result(LIMIT_S), rows_of([[first]]))
    assert_works(ours)


def test_a_runtimes_exception_fails_the_call_to_blame_and_no_other(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime)
    firsts = [1, POISON, 3, 4]
    for first, call in zip(firsts, shared_batch(runtime, ours, threads, firsts), strict=True):
        if first == POISON:
            with pytest.raises(EngineFailed, match="ZeroDivisionError: poisoned"):
                call.result(LIMIT_S)
        else:
            np.testing.assert_array_equal(call.result(LIMIT_S), rows_of([[first]]))
    assert ours.counts.failed_batches >= 2
    assert_works(ours)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_batch_that_comes_back_with_another_number_of_rows_is_computed_in_halves(count: int) -> None:
    def run(sequences: list[list[int]]) -> np.ndarray:
        return rows_of(sequences) if len(sequences) == 1 else np.zeros((count, DIMENSION), np.float32)

    np.testing.assert_array_equal(compute(scheduler(run), [[1], [2]]), rows_of([[1], [2]]))
    with pytest.raises(EngineFailed, match="rows of shape"):
        compute(scheduler(lambda ids: np.zeros((count, 3), np.float32)), [[1]])


def test_the_end_of_a_thread_in_mid_batch_costs_no_call_its_answer(threads: ThreadPoolExecutor) -> None:
    runtime, ends = Runtime(), iter([SystemExit, None, KeyboardInterrupt, None])

    def run(sequences: list[list[int]]) -> np.ndarray:
        rows = runtime(sequences)
        if len(sequences) > 1 and (end := next(ends, None)):
            raise end
        return rows

    ours = scheduler(run)
    permits = ours._device.permits
    for firsts in ([2, 3, 4], [5, 6]):
        until(lambda: ours._device.permits == permits)  # a call has its answer before its leader leaves
        calls = shared_batch(runtime, ours, threads, firsts)
        for first, call in zip(firsts, calls, strict=True):
            np.testing.assert_array_equal(call.result(LIMIT_S), rows_of([[first]]))
    assert list(ends) == []
    assert_works(ours)


@pytest.mark.parametrize("first", [INTERRUPT, HUGE])
def test_what_ends_every_thread_that_computes_it_fails_its_batch_and_wedges_nobody(
    first: int, threads: ThreadPoolExecutor
) -> None:
    """HUGE: the interrupt hits the first half."""
    runtime = Runtime()

    def run(sequences: list[list[int]]) -> np.ndarray:
        if first == HUGE and len(sequences) == 1 and sequences[0][0] != 1:
            raise KeyboardInterrupt
        return runtime(sequences)

    ours = scheduler(run)
    for call in shared_batch(runtime, ours, threads, [2, first, 3]):
        with pytest.raises(EngineFailed, match="interrupted"):
            call.result(LIMIT_S / 4)
    until(lambda: ours.active == 0)
    np.testing.assert_array_equal(compute(ours, [[1]]), rows_of([[1]]))


def test_an_interrupt_in_the_callers_own_thread_is_the_callers() -> None:
    ours = scheduler(Runtime())
    with pytest.raises(KeyboardInterrupt):
        compute(ours, [[INTERRUPT]])
    np.testing.assert_array_equal(compute(ours, [[1]]), rows_of([[1]]))


@pytest.mark.parametrize("permits", [1, 3])
def test_no_permit_is_lost_in_hundreds_of_calls_that_fail_in_every_way(
    permits: int, threads: ThreadPoolExecutor
) -> None:
    runtime = Runtime(fits=3)
    together, all_permits = 77, threading.Barrier(permits)

    def run(sequences: list[list[int]]) -> np.ndarray:
        firsts = {ids[0] for ids in sequences}
        if SLOW in firsts:
            threading.Event().wait(0.004)  # longer than some deadlines
        if together in firsts:
            all_permits.wait(LIMIT_S)
        return runtime(sequences)

    ours = scheduler(run, permits=permits, interactive_budget=40, max_waiting_tokens=400)
    firsts = [1, 2, 3, 4, SLOW, SLOW, HUGE, POISON, INTERRUPT]

    def calls(caller: int) -> list[str]:
        dice, unexpected = random.Random(caller), []
        for _ in range(25):
            sequences = [[dice.choice(firsts)] * dice.randint(1, 30) for _ in range(dice.randint(1, 4))]
            wait_s = dice.choice([0.0, 0.001, 0.003, LIMIT_S, LIMIT_S])
            try:
                rows = compute(ours, sequences, wait_s, caller, is_gone=lambda: dice.random() < 0.2)
                np.testing.assert_array_equal(rows, rows_of(sequences))
            except (EmbedshareError, KeyboardInterrupt):
                pass
            except BaseException as error:
                unexpected.append(repr(error))
        return unexpected

    assert [said for found in threads.map(calls, range(24), timeout=60) for said in found] == []
    assert runtime.most_running <= permits
    assert_works(ours)
    held: list[Future[np.ndarray]] = []
    while len(held) < permits:  # one by one: by now the scheduler delays some calls for company
        until(lambda: all_permits.n_waiting == len(held))
        held.append(threads.submit(compute, ours, [[together]], caller=len(held)))
    for call in held:  # they met in the runtime, so no permit is lost
        np.testing.assert_array_equal(call.result(LIMIT_S), rows_of([[together]]))
