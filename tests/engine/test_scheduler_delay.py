"""How a scheduler delays a batch for calls that are about to arrive."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedshare.engine.scheduler import Scheduler
from tests.engine.runtime_fake import LIMIT_S, Runtime, compute, hold, rows_of, scheduler, until
from tests.usual_calls import Usual


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
