"""Pauses double up to a limit, are spread at random, and are no shorter than what the other side asks for."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.backoff import Backoff

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
