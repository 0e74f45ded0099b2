"""When a batch is held back for those who are about to come."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedshare.engine.batch_delay import MOST_PATIENCE_S, BatchDelay
from embedshare.engine.scheduler import Scheduler
from tests.engine.runtime_fake import LIMIT_S, Runtime, compute, hold, rows_of, scheduler, until

BATCH_S = 0.01


def after(calls: int, at_once: int, every_s: float) -> BatchDelay:
    """So many calls, of which `at_once` are always under way, one coming each `every_s`."""
    delay = BatchDelay()
    for call in range(calls):
        if call >= at_once:
            delay.left()
        delay.arrived(call * every_s)
        delay.computed(BATCH_S)
    return delay


def test_a_caller_who_comes_alone_is_never_held_back() -> None:
    delay = after(200, at_once=1, every_s=0.003)
    assert delay.is_here(waiting=1, leaders=2)


def test_a_batch_is_held_back_for_as_long_as_two_take_where_calls_come_faster() -> None:
    assert after(200, at_once=8, every_s=0.002).patience_s == pytest.approx(2 * BATCH_S, rel=0.01)


def test_nothing_is_held_back_where_the_next_call_is_not_likely_to_come_in_that_time() -> None:
    assert after(200, at_once=8, every_s=0.008).patience_s == 0.0
    assert BatchDelay().patience_s == 0.0


def test_nobody_is_kept_longer_than_the_most_however_long_batches_take() -> None:
    delay = after(200, at_once=8, every_s=0.002)
    for _ in range(50):
        delay.computed(1.0)
    assert delay.patience_s == MOST_PATIENCE_S


def test_a_leaders_share_of_those_who_are_usually_under_way_is_enough() -> None:
    delay = after(200, at_once=8, every_s=0.002)
    for _ in range(3):
        delay.left()
    assert not delay.is_here(waiting=4, leaders=1)
    assert not delay.is_here(waiting=3, leaders=2)
    assert delay.is_here(waiting=4, leaders=2)


def test_there_is_nobody_to_wait_for_once_all_are_under_way() -> None:
    delay = after(200, at_once=8, every_s=0.002)
    delay.left()
    assert not delay.is_here(waiting=1, leaders=2)
    delay.arrived(0.4)
    assert delay.is_here(waiting=2, leaders=2)


def test_callers_that_stay_away_are_forgotten() -> None:
    delay = after(200, at_once=16, every_s=0.002)
    for _ in range(16):
        delay.left()
    calls = 0
    while not delay.is_here(waiting=1, leaders=1):
        delay.arrived(1.0 + calls * 0.002)
        delay.left()
        calls += 1
        assert calls < 300
    assert calls > 16  # and not for a pause of some of them


class Usual(BatchDelay):
    """As if `calls` were always under way."""

    def __init__(self, calls: int, patience_s: float) -> None:
        super().__init__()
        self._others = self._peak = calls
        self._patience_s = patience_s

    @property
    def patience_s(self) -> float:
        return self._patience_s


def waits_for(ours: Scheduler, calls: int, patience_s: float = LIMIT_S / 3) -> None:
    ours._batch_delay = Usual(calls, patience_s)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_calls_that_come_one_after_the_other_share_a_batch(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime)
    waits_for(ours, calls=3)
    calls = []
    for n in range(1, 4):
        assert runtime.batches == []
        calls.append(threads.submit(compute, ours, [[n]], caller=n))
        until(lambda: ours.active == len(calls) or bool(runtime.batches))
    for n, call in enumerate(calls, 1):
        np.testing.assert_array_equal(call.result(LIMIT_S), rows_of([[n]]))
    assert [len(batch) for batch in runtime.batches] == [3]


def test_who_does_not_come_is_not_waited_for_any_longer(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime)
    waits_for(ours, calls=3, patience_s=0.05)
    np.testing.assert_array_equal(compute(ours, [[1]]), rows_of([[1]]))
    assert ours.active == 0


def test_nobody_is_held_back_past_the_deadline(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime)
    waits_for(ours, calls=3, patience_s=LIMIT_S)
    np.testing.assert_array_equal(compute(ours, [[1]], wait_s=1.0), rows_of([[1]]))


def test_what_a_held_back_batch_leaves_over_is_computed_beside_it(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime, permits=2, interactive_budget=32)
    waits_for(ours, calls=4, patience_s=0.2)
    runtime.gate.clear()
    calls = [threads.submit(compute, ours, [[n] * 30], caller=n) for n in range(4)]
    until(lambda: runtime.running == 2)
    runtime.gate.set()
    for n, call in enumerate(calls):
        np.testing.assert_array_equal(call.result(LIMIT_S), rows_of([[n] * 30]))


def test_the_only_permit_is_not_held_back_from_bulk(threads: ThreadPoolExecutor) -> None:
    runtime = Runtime()
    ours = scheduler(runtime)
    held = hold(runtime, ours, threads)
    waits_for(ours, calls=9)
    calls = [threads.submit(compute, ours, [[n] * length], caller=n) for n, length in ((1, 600), (2, 1))]
    until(lambda: ours.waiting_tokens == 601)
    runtime.gate.set()
    for call in [held, *calls]:
        assert call.result(LIMIT_S).shape == (1, 4)
    assert [len(batch[0]) for batch in runtime.batches] == [1, 1, 600]
