"""When the scheduler delays a batch for callers that are about to call."""

from __future__ import annotations

import pytest

from embedshare.batch_delay import MOST_PATIENCE_S, BatchDelay

BATCH_S = 0.01


def after(calls: int, at_once: int, every_s: float) -> BatchDelay:
    """A delay after this many calls, one each `every_s`, with `at_once` of them always in flight."""
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
    assert calls > 16  # a pause of a few callers is not enough
