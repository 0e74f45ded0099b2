"""Pauses double up to a limit, are spread at random, and are no shorter than the server's Retry-After."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.backoff import Backoff, retry, told_s

seconds = st.floats(0.001, 1e4)


def test_pauses_double_up_to_the_limit() -> None:
    assert list(islice(Backoff(0.5, 10.0).pauses_s(), 7)) == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_limit_below_the_first_pause_holds_for_it_too() -> None:
    assert Backoff(5.0, 2.0).pause_s(1) == 2.0


@pytest.mark.parametrize("failures", [64, 65, 1_000, 10**9])
def test_after_ever_so_many_failures_the_pause_is_the_longest(failures: int) -> None:
    assert Backoff(1e-3, 30.0).pause_s(failures) == 30.0


@pytest.mark.parametrize(
    ("failures", "asked_s", "pause_s"), [(1, 3.0, 3.0), (1, 100.0, 100.0), (4, 3.0, 8.0)]
)
def test_what_the_other_side_asks_for_is_the_least(failures: int, asked_s: float, pause_s: float) -> None:
    assert Backoff(1.0, 10.0).pause_s(failures, asked_s) == pause_s


@given(seconds, seconds, st.floats(0, 1), st.integers(1, 200), st.floats(0, 1e4))
def test_at_random_a_pause_only_grows_and_by_no_more_than_its_jitter(
    first_s: float, longest_s: float, jitter: float, failures: int, asked_s: float
) -> None:
    least = Backoff(first_s, longest_s).pause_s(failures, asked_s)
    assert asked_s <= least <= max(asked_s, longest_s)
    assert least <= Backoff(first_s, longest_s, jitter).pause_s(failures, asked_s) <= least * (1 + jitter)


def test_callers_that_failed_together_return_apart() -> None:
    backoff = Backoff(1.0, 10.0, jitter=0.5)
    assert len({backoff.pause_s(1) for _ in range(20)}) > 1


class Work:
    """Raise these errors in turn and then return 7; each attempt and each wait moves the clock."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.now = 100.0
        self.tried_at: list[float] = []

    def __call__(self) -> int:
        self.tried_at.append(self.now)
        if self.errors:
            raise self.errors.pop(0)
        return 7

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def retried(self, deadline: float, passes: Callable[[Exception], bool] = lambda error: True) -> int:
        return retry(self, passes, Backoff(1.0, 4.0), deadline, lambda: self.now, self.sleep)


def test_what_fails_is_tried_again_after_pauses_that_double() -> None:
    work = Work(OSError("1"), OSError("2"), OSError("3"), OSError("4"))
    assert work.retried(200.0) == 7
    assert work.tried_at == [100.0, 101.0, 103.0, 107.0, 111.0]


def test_the_last_try_is_at_the_deadline_and_its_error_is_raised() -> None:
    work = Work(*[OSError(str(number)) for number in range(9)])
    with pytest.raises(OSError, match="3"):
        work.retried(106.0)
    assert work.tried_at == [100.0, 101.0, 103.0, 106.0]


def test_after_the_deadline_it_is_tried_once() -> None:
    assert Work().retried(50.0) == 7
    work = Work(OSError("only"))
    with pytest.raises(OSError, match="only"):
        work.retried(50.0)


def test_an_error_that_does_not_pass_is_raised_at_once() -> None:
    work = Work(OSError("passes"), ValueError("stays"))
    with pytest.raises(ValueError, match="stays"):
        work.retried(200.0, lambda error: isinstance(error, OSError))
    assert work.now == 101.0


def test_a_pause_that_is_told_is_never_shorter() -> None:
    assert [told_s(seconds) for seconds in (0.9994, 0.9991, 1.0, 0.0)] == [1.0, 1.0, 1.0, 0.0]
