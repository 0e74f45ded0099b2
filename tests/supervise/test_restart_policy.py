"""Restarts: at once after work, with pauses that double after failed starts, and given up in a crash loop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.supervise.restart_policy import (
    CRASH_LOOP,
    FAULTS_WITHIN_S,
    PAUSES,
    SETTLED_S,
    Faults,
    RestartPolicy,
)

FIRST_S, LONGEST_S = PAUSES.first_s, PAUSES.longest_s


def pauses(ready: list[float | None]) -> list[float | None]:
    policy = RestartPolicy()
    return [policy.restart_in(ready_s) for ready_s in ready]


def test_pauses_double_and_the_sixth_failed_start_in_a_row_is_given_up() -> None:
    assert pauses([None] * 6) == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, None])


def test_given_up_it_stays_so_while_it_fails_to_start() -> None:
    assert pauses([None] * (CRASH_LOOP + 3))[CRASH_LOOP - 1 :] == [None] * 4


@pytest.mark.parametrize(("ready_s", "pause"), [(SETTLED_S - 0.001, 0.4), (SETTLED_S, FIRST_S)])
def test_a_process_that_was_ready_for_a_while_has_not_failed_to_start(ready_s: float, pause: float) -> None:
    assert pauses([None, ready_s])[-1] == pytest.approx(pause)


@given(st.lists(st.floats(SETTLED_S, 1e6), max_size=50))
def test_what_worked_is_started_again_at_once_however_often_it_ends(ready: list[float]) -> None:
    assert pauses(list(ready)) == [FIRST_S] * len(ready)


@given(st.lists(st.none() | st.floats(0, 3 * SETTLED_S), max_size=60))
def test_it_is_given_up_exactly_when_so_many_starts_in_a_row_failed(ready: list[float | None]) -> None:
    policy, in_a_row = RestartPolicy(), 0
    for ready_s in ready:
        in_a_row = in_a_row + 1 if ready_s is None or ready_s < SETTLED_S else 0
        pause = policy.restart_in(ready_s)
        assert (pause is None) == (in_a_row >= CRASH_LOOP)
        assert pause is None or FIRST_S <= pause <= LONGEST_S


def test_each_process_has_ends_of_its_own() -> None:
    first, second = RestartPolicy(), RestartPolicy()
    assert [first.restart_in(None), first.restart_in(None), second.restart_in(None)] == [0.2, 0.4, 0.2]


@pytest.mark.parametrize(
    ("moments", "told"),
    [
        ([0.0, 1.0, 2.0, 3.0], [False, False, True, True]),
        ([0.0, 1.0, FAULTS_WITHIN_S, FAULTS_WITHIN_S + 2], [False, False, True, False]),
    ],
)
def test_the_third_fault_within_ten_minutes_is_no_accident(moments: list[float], told: list[bool]) -> None:
    faults = Faults()
    assert [faults.note(moment) for moment in moments] == told
