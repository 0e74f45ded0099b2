"""Restarts: pauses that double, a crash loop that is given up, and ends that are forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.supervise.policy import BACKOFF_S, CRASH_LOOP, RestartPolicy

MOST, WITHIN_S = CRASH_LOOP
FIRST_S, LONGEST_S = BACKOFF_S


def pauses(ends: list[float]) -> list[float | None]:
    policy = RestartPolicy()
    return [policy.restart_in(now) for now in ends]


def test_pauses_double_and_the_fifth_end_within_two_minutes_is_given_up() -> None:
    assert pauses([0.0, 1.0, 2.0, 3.0, 4.0]) == [0.5, 1.0, 2.0, 4.0, None]


def test_given_up_it_stays_so_while_it_ends_again() -> None:
    assert pauses([0.0] * (MOST + 3))[MOST - 1 :] == [None] * 4


@pytest.mark.parametrize(("last", "pause"), [(WITHIN_S, None), (WITHIN_S + 0.001, 4.0)])
def test_an_end_counts_for_as_long_as_the_window_is(last: float, pause: float | None) -> None:
    assert pauses([0.0, 1.0, 2.0, 3.0, last])[-1] == pause


def test_after_a_long_time_of_work_the_pauses_start_anew() -> None:
    assert pauses([0.0, 1.0, 2.0, 2.0 + WITHIN_S + 1])[-1] == FIRST_S


@given(st.lists(st.floats(WITHIN_S / (MOST - 1) + 0.01, 1e6), max_size=50))
def test_ends_far_enough_apart_are_never_given_up(gaps: list[float]) -> None:
    now, policy = 0.0, RestartPolicy()
    for gap in gaps:
        now += gap
        pause = policy.restart_in(now)
        assert pause is not None
        assert FIRST_S <= pause <= LONGEST_S


@given(st.lists(st.floats(0, 60), max_size=60))
def test_it_is_given_up_exactly_when_the_window_holds_too_many_ends(gaps: list[float]) -> None:
    ends, policy = [0.0], RestartPolicy()
    policy.restart_in(0.0)
    for gap in gaps:
        ends.append(ends[-1] + gap)
        recent = [end for end in ends if ends[-1] - end <= WITHIN_S]
        assert (policy.restart_in(ends[-1]) is None) == (len(recent) >= MOST)


def test_each_process_has_ends_of_its_own() -> None:
    first, second = RestartPolicy(), RestartPolicy()
    assert [first.restart_in(0.0), first.restart_in(0.0), second.restart_in(0.0)] == [0.5, 1.0, 0.5]
