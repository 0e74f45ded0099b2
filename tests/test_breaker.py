"""A breaker refuses calls that would only fail, sends one probe at a time, and closes again."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embedshare.backoff import Backoff
from embedshare.breaker import SLICES, Attempt, Breaker, Limits
from tests.forking import forks, holds_in_forked_child

OPEN = Backoff(4.0, 10.0)
LIMITS = Limits(OPEN, window_s=10.0, minimum_calls=4, failure_share=0.5)


class World:
    """A breaker and its clock."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.now = 1000.0
        self.breaker = Breaker(limits, lambda: self.now)

    @property
    def retry_in_s(self) -> float:
        """Seconds until the breaker may admit a call; 0 if it may now."""
        return 0.0 if self.breaker.is_closed else max(0.0, self.breaker._open_until - self.now)

    def attempt(self) -> Attempt:
        attempt = self.breaker.admit()
        assert attempt is not None
        return attempt

    def end(self, *outcomes: bool) -> list[bool]:
        """Make calls in sequence that succeed where true; return what each verdict changed."""
        return [self.attempt().succeeded() if good else self.attempt().failed() for good in outcomes]

    def opened(self) -> World:
        self.end(False, False, False, False)
        assert not self.breaker.is_closed
        return self


def test_it_opens_with_the_call_that_makes_enough_failures_of_enough_calls() -> None:
    world = World()
    assert world.end(True, False, False, False) == [False, False, False, True]
    assert world.breaker.admit() is None
    assert world.retry_in_s == 4.0


def test_it_stays_closed_while_most_calls_succeed_and_while_there_were_few() -> None:
    world = World()
    world.end(True, True, True, False, True, False, True, False)
    assert world.breaker.is_closed
    few = World()
    few.end(False, False, False)
    assert few.breaker.is_closed


def test_calls_that_left_the_window_do_not_count() -> None:
    world = World()
    world.end(False, False, False)
    world.now += 10.0
    world.end(False)
    assert world.breaker.is_closed
    world.now += 9.0 - 10.0 / SLICES
    assert world.end(False, False, False) == [False, False, True]


def test_any_failure_opens_where_the_limits_say_so() -> None:
    world = World(Limits(OPEN, failure_share=0.0))
    assert world.end(*[True] * 50, False)[-1]
    assert world.breaker.admit() is None


def test_after_its_time_one_probe_is_admitted_and_closes_it_for_all() -> None:
    world = World().opened()
    world.now += 3.999
    assert world.breaker.admit() is None
    world.now += 0.002
    assert world.retry_in_s == 0.0
    probe = world.attempt()
    assert world.breaker.admit() is None
    assert probe.succeeded()
    assert world.breaker.is_closed
    assert world.end(False, False, False) == [False, False, False], "failures before it opened count no more"


def test_each_failed_probe_doubles_the_time_up_to_the_limit_and_a_success_begins_again() -> None:
    world, waits = World().opened(), []
    for _ in range(4):
        waits.append(world.retry_in_s)
        world.now += world.retry_in_s
        assert world.attempt().failed() is False, "it was open before"
    assert waits == [4.0, 8.0, 10.0, 10.0]
    world.now += world.retry_in_s
    world.attempt().succeeded()
    assert world.opened().retry_in_s == 4.0


def test_the_time_is_spread_at_random() -> None:
    worlds = [World(Limits(Backoff(4.0, 10.0, jitter=0.5), minimum_calls=4)) for _ in range(20)]
    waits = {world.opened().retry_in_s for world in worlds}
    assert len(waits) > 1
    assert all(4.0 <= wait <= 6.0 for wait in waits)


def test_a_retry_after_opens_it_at_once_and_for_no_less() -> None:
    world = World()
    assert world.attempt().failed(retry_after_s=7.0)
    assert world.retry_in_s == 7.0


def test_a_later_retry_after_of_calls_that_were_under_way_holds_too() -> None:
    world = World()
    first, second, third = world.attempt(), world.attempt(), world.attempt()
    assert first.failed(retry_after_s=5.0)
    world.now += 1.0
    assert second.failed(retry_after_s=9.0) is False
    assert third.failed(retry_after_s=2.0) is False
    assert world.retry_in_s == 9.0


def test_calls_that_began_before_it_opened_neither_close_it_nor_prolong_it() -> None:
    world = World()
    late = [world.attempt(), world.attempt()]
    world.opened()
    assert late[0].succeeded() is False
    assert late[1].failed() is False
    assert world.breaker.admit() is None
    assert world.retry_in_s == 4.0


def test_a_block_that_ends_is_a_success_and_one_that_raises_is_no_verdict() -> None:
    world = World().opened()
    world.now += 4.0
    with pytest.raises(KeyError), world.attempt():
        raise KeyError
    assert not world.breaker.is_closed
    with world.attempt():  # this attempt is the probe
        pass
    assert world.breaker.is_closed
    with world.attempt() as attempt:
        attempt.failed(1.0)
    assert not world.breaker.is_closed, "a verdict holds, however the block ends"


def test_its_lock_is_not_held_over_a_call() -> None:
    world, admitted = World(), []
    with world.attempt():
        other = threading.Thread(target=lambda: admitted.append(world.breaker.admit()))
        other.start()
        other.join(10)
    assert len(admitted) == 1


def test_of_threads_that_come_at_once_one_is_the_probe() -> None:
    world = World().opened()
    world.now += 4.0
    start, admitted = threading.Barrier(16), []

    def come() -> None:
        start.wait(30)
        admitted.append(world.breaker.admit())

    threads = [threading.Thread(target=come) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(admitted) == 16
    assert sum(attempt is not None for attempt in admitted) == 1


@forks
def test_a_forked_child_does_not_wait_for_a_probe_of_its_parent_nor_for_its_lock() -> None:
    world = World().opened()
    world.now += 4.0
    world.attempt()
    with world.breaker._lock:
        assert holds_in_forked_child(lambda: world.attempt().succeeded())
    assert world.breaker.admit() is None


class BreakerAgainstModel(RuleBasedStateMachine):
    """A breaker next to a reference that keeps every call and has no slices, locks or periods.

    The clock moves in whole slices of the window, for which both count the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.ended: list[tuple[float, bool]] = []
        self.opened = 0
        self.until = 0.0
        self.open_calls: list[tuple[Attempt, int]] = []
        self.changes = 0

    @property
    def probing(self) -> bool:
        return self.opened > 0 and any(born == self.changes for _, born in self.open_calls)

    @rule(steps=st.integers(1, 2 * SLICES))
    def wait(self, steps: int) -> None:
        self.world.now += steps * LIMITS.window_s / SLICES

    @rule()
    def begin(self) -> None:
        expected = self.opened == 0 or (self.world.now >= self.until and not self.probing)
        attempt = self.world.breaker.admit()
        assert (attempt is not None) == expected
        if attempt is not None:
            self.open_calls.append((attempt, self.changes))

    @precondition(lambda self: self.open_calls)
    @rule(which=st.integers(0, 100))
    def succeed(self, which: int) -> None:
        attempt, born = self.open_calls.pop(which % len(self.open_calls))
        counts = born == self.changes
        assert attempt.succeeded() == (counts and self.opened > 0)
        if counts and self.opened:
            self.opened, self.ended = 0, []
            self.changes += 1
        elif counts:
            self.ended.append((self.world.now, False))

    @precondition(lambda self: self.open_calls)
    @rule(which=st.integers(0, 100), retry_after_s=st.sampled_from([0.0, 0.0, 0.0, 3.0, 25.0]))
    def fail(self, which: int, retry_after_s: float) -> None:
        attempt, born = self.open_calls.pop(which % len(self.open_calls))
        was_closed, now = self.opened == 0, self.world.now
        if born != self.changes:
            assert attempt.failed(retry_after_s) is False
            if not was_closed:
                self.until = max(self.until, now + retry_after_s)
            return
        self.ended.append((now, True))
        lately = [failed for ended, failed in self.ended if now - ended < LIMITS.window_s - 1e-6]
        failing = len(lately) >= LIMITS.minimum_calls and sum(lately) / len(lately) >= LIMITS.failure_share
        opens = failing or retry_after_s > 0 or not was_closed
        assert attempt.failed(retry_after_s) == (opens and was_closed)
        if opens:
            self.opened += 1
            self.until = now + max(retry_after_s, min(OPEN.longest_s, OPEN.first_s * 2 ** (self.opened - 1)))
            self.ended = []
            self.changes += 1

    @precondition(lambda self: self.open_calls)
    @rule(which=st.integers(0, 100))
    def abandon(self, which: int) -> None:
        attempt, born = self.open_calls.pop(which % len(self.open_calls))
        attempt.__exit__(KeyError)
        if born == self.changes and self.opened:
            self.changes += 1

    @invariant()
    def both_agree(self) -> None:
        assert self.world.breaker.is_closed == (self.opened == 0)
        left_s = 0.0 if self.opened == 0 else max(0.0, self.until - self.world.now)
        assert self.world.retry_in_s == pytest.approx(left_s)


TestBreakerAgainstModel = BreakerAgainstModel.TestCase
TestBreakerAgainstModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
