"""The scheduler under real threads: right rows, few batches, in time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedshare.errors import DeadlineExceeded, EngineFailed, OutOfMemory, Overloaded
from tests.engine.runtime_fake import (
    DIMENSION,
    LIMIT_S,
    Runtime,
    assert_works,
    compute,
    hold,
    rows_of,
    scheduler,
    until,
)  # fmt: skip


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(40)
    yield pool
    pool.shutdown(wait=False, cancel_futures=True)


def test_a_call_that_comes_alone_is_computed_in_order_whatever_its_lengths() -> None:
    runtime = Runtime()
    sequences = [[length] * length for length in (3, 900, 1, 40, 40, 2000, 7)]
    rows, waited_s, computed_s = scheduler(runtime).compute(sequences, deadline=time.monotonic() + LIMIT_S)
    np.testing.assert_array_equal(rows, rows_of(sequences))
    assert (rows.dtype, rows.shape) == (np.dtype(np.float32), (7, DIMENSION))
    assert waited_s >= 0
    assert computed_s > 0


def test_no_sequences_are_no_rows_at_once_and_nothing_is_computed() -> None:
    runtime = Runtime()
    rows, waited_s, computed_s = scheduler(runtime).compute([], deadline=0.0)
    assert (rows.shape, rows.dtype, waited_s, computed_s) == ((0, DIMENSION), np.float32, 0.0, 0.0)
    assert runtime.batches == []


@pytest.mark.parametrize("fits", [1_000_000, 2])
def test_rows_of_any_size_arrive_in_their_places_also_from_halves(fits: int) -> None:
    def run(sequences: list[list[int]]) -> np.ndarray:
        if len(sequences) > fits:
            raise OutOfMemory("too many")
        rows = np.empty(len(sequences), object)
        for at, ids in enumerate(sequences):
            rows[at] = np.arange(len(ids))
        return rows

    ours = scheduler(run, dimension=None)
    lengths = [3, 900, 1, 40, 0, 7]
    rows, _, _ = ours.compute([[1] * length for length in lengths], deadline=time.monotonic() + LIMIT_S)
    assert (rows.dtype, rows.shape) == (np.dtype(object), (6,))
    assert [row.tolist() for row in rows] == [list(range(length)) for length in lengths]
    assert ours.compute([], deadline=0.0)[0].shape == (0,)


def test_rows_of_another_shape_are_an_error() -> None:
    ours = scheduler(lambda sequences: np.zeros((len(sequences), 2), np.float32), dimension=None)
    with pytest.raises(EngineFailed, match=r"rows of shape \(1, 2\), not \(1,\)"):
        ours.compute([[1]], deadline=time.monotonic() + LIMIT_S)


@pytest.mark.parametrize("permits", [1, 3])
def test_rows_arrive_at_the_right_caller_for_many_threads(permits: int, threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime, permits=permits, interactive_budget=60, bulk_budget=300)

    def calls(caller: int) -> bool:
        dice = random.Random(caller)
        for _ in range(30):
            lengths = [dice.randint(1, 40) for _ in range(dice.choice([1, 2, 5, 40]))]
            sequences = [[dice.randint(1, 9999)] * length for length in lengths]
            np.testing.assert_array_equal(compute(ours, sequences, caller=caller), rows_of(sequences))
        return True

    assert all(threads.map(calls, range(16), timeout=60))
    assert runtime.most_running <= permits
    assert ours.counts.sequences == sum(map(len, runtime.batches))
    assert_works(ours)


def test_all_permits_are_used_and_not_one_more(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime, permits=3)
    runtime.gate.clear()
    calls = [threads.submit(compute, ours, [[n]], caller=n) for n in range(1, 9)]
    for _ in range(3):
        assert runtime.holding.acquire(timeout=LIMIT_S)
    until(lambda: ours.active == 8)
    assert runtime.running == 3
    runtime.gate.set()
    for n, call in enumerate(calls, 1):
        np.testing.assert_array_equal(call.result(LIMIT_S), rows_of([[n]]))
    assert runtime.most_running == 3
    assert_works(ours)


def test_sixteen_callers_share_a_batch_while_another_is_computed(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime)
    held = hold(runtime, ours, threads)
    calls = [threads.submit(compute, ours, [[n, n]], caller=n) for n in range(1, 17)]
    until(lambda: ours.waiting_tokens == 32)
    runtime.gate.set()
    for n, call in enumerate(calls, 1):
        np.testing.assert_array_equal(call.result(LIMIT_S), rows_of([[n, n]]))
    held.result(LIMIT_S)
    assert [len(batch) for batch in runtime.batches] == [1, 16]
    assert (ours.counts.batches, ours.counts.shared_batches, ours.counts.largest_batch_callers) == (2, 1, 16)


def test_a_call_that_waits_past_its_deadline_is_told_in_time(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime)
    held = hold(runtime, ours, threads)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"waited 0\.1"):
        compute(ours, [[2]], wait_s=0.1)
    assert 0.1 <= time.monotonic() - began < 2
    assert (ours.waiting_tokens, ours.counts.expired) == (0, 1)
    runtime.gate.set()
    held.result(LIMIT_S)
    assert_works(ours)
    assert [[2]] not in runtime.batches


def test_a_deadline_within_anothers_batch_ends_that_call_alone(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime)
    held = hold(runtime, ours, threads)
    late, patient = [[2]], [[3]]
    calls = [threads.submit(compute, ours, patient, caller=n) for n in (1, 3)]
    until(lambda: ours.waiting_tokens == 2)
    late_call = threads.submit(compute, ours, late, 0.5, 2)
    until(lambda: ours.waiting_tokens == 3)
    before, runtime.gate = runtime.gate, threading.Event()  # holds the shared batch next
    before.set()
    assert runtime.holding.acquire(timeout=LIMIT_S)
    with pytest.raises(DeadlineExceeded):
        late_call.result(LIMIT_S)
    runtime.gate.set()
    for call in calls:
        np.testing.assert_array_equal(call.result(LIMIT_S), rows_of(patient))
    held.result(LIMIT_S)
    assert_works(ours)


def test_what_is_past_its_deadline_or_has_left_is_dropped_before_it_is_computed(
    threads: ThreadPoolExecutor,
) -> None:
    runtime = Runtime()
    now = [1000.0]
    ours = scheduler(runtime, clock=lambda: now[0])
    runtime.gate.clear()
    held = threads.submit(ours.compute, [[1]], deadline=2000.0)
    assert runtime.holding.acquire(timeout=LIMIT_S)
    left = threads.submit(ours.compute, [[2]], deadline=2000.0, caller=2, is_gone=lambda: True)
    stays = threads.submit(ours.compute, [[3]], deadline=2000.0, caller=3, is_gone=lambda: False)
    late = threads.submit(ours.compute, [[4]], deadline=1500.0, caller=4)
    until(lambda: ours.waiting_tokens == 3)
    now[0] = 1600.0
    runtime.gate.set()
    held.result(LIMIT_S)
    np.testing.assert_array_equal(stays.result(LIMIT_S)[0], rows_of([[3]]))
    for call, reason in ((left, "the caller left"), (late, "600.00 s")):
        with pytest.raises(DeadlineExceeded, match=reason):
            call.result(LIMIT_S)
    assert runtime.batches == [[[1]], [[3]]]
    assert (ours.counts.abandoned, ours.counts.expired) == (1, 1)


def test_beyond_the_limit_a_call_is_refused_with_a_time_to_retry_after(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime, max_waiting_tokens=10)
    compute(ours, [[1] * 500])  # an idle scheduler accepts a call above the limit
    held = hold(runtime, ours, threads)
    fits = threads.submit(compute, ours, [[2] * 10], caller=2)
    until(lambda: ours.waiting_tokens == 10)
    with pytest.raises(Overloaded, match="10 tokens are queued, and 10") as caught:
        compute(ours, [[3]])
    assert 0.05 <= caught.value.fields["retry_after_s"] <= 30
    assert (ours.counts.rejected, ours.active, ours.waiting_tokens) == (1, 2, 10)
    runtime.gate.set()
    np.testing.assert_array_equal(fits.result(LIMIT_S), rows_of([[2] * 10]))
    held.result(LIMIT_S)
    assert_works(ours)


def test_where_no_thread_starts_any_more_callers_compute_for_themselves(threads: ThreadPoolExecutor) -> None:
    """As at interpreter exit: a call of several batches still returns all rows."""
    runtime = Runtime()
    ours = scheduler(runtime, permits=3, leaders=2, interactive_budget=64, bulk_budget=64)
    ours._threads.shutdown()
    sequences = [[number] * 60 for number in range(1, 9)]
    np.testing.assert_array_equal(compute(ours, sequences), rows_of(sequences))
    assert_works(ours)


def test_where_no_thread_starts_any_more_waiting_callers_lead_one_after_another(
    threads: ThreadPoolExecutor,
) -> None:
    runtime = Runtime()
    ours = scheduler(runtime, permits=3, leaders=2, interactive_budget=64, bulk_budget=64)
    ours._threads.shutdown()
    held = [hold(runtime, ours, threads, number) for number in (1, 2)]
    calls = {n: threads.submit(compute, ours, [[n] * 60] * (n % 4 + 1), caller=n) for n in range(3, 9)}
    until(lambda: ours.active == 8)
    runtime.gate.set()
    for number, call in calls.items():
        np.testing.assert_array_equal(call.result(LIMIT_S), rows_of([[number] * 60] * (number % 4 + 1)))
    for one in held:
        one.result(LIMIT_S)
    assert_works(ours)
