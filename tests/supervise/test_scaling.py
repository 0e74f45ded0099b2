"""When workers are added and removed, with invented loads and times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.supervise.scaling import Scaling, Step, WorkerLoad

BUSY, IDLE, HALF = WorkerLoad(8, 8, 0.1), WorkerLoad(0, 8, 0.02), WorkerLoad(4, 8, 0.2)


def scaling() -> Scaling:
    return Scaling(2, 4, up_s=5.0, down_s=20.0)


def test_a_worker_is_as_busy_as_the_busier_of_its_threads_and_its_core() -> None:
    assert WorkerLoad(2, 8, 0.9).busy == 0.9
    assert WorkerLoad(6, 8, 0.1).busy == 0.75
    assert WorkerLoad(30, 8, 1.3).busy == 1.0
    assert WorkerLoad(None, 8, 0.0).busy == 1.0  # a worker that does not report counts as busy


def test_another_worker_comes_when_they_were_busy_for_long_enough_and_not_before() -> None:
    one = scaling()
    assert [one.step(now, [BUSY, BUSY]) for now in (100.0, 102.0, 104.9)] == [None, None, None]
    assert one.step(105.0, [BUSY, BUSY]) == Step(3, "5 s busy, 100% now")
    assert one.step(106.0, [BUSY, BUSY, BUSY]) is None  # the measurement restarts


def test_a_pause_in_the_load_begins_the_time_anew() -> None:
    one = scaling()
    assert one.step(0.0, [BUSY, BUSY]) is None
    assert one.step(4.0, [HALF, HALF]) is None
    assert one.step(5.0, [BUSY, BUSY]) is None
    assert one.step(9.0, [BUSY, BUSY]) is None
    assert one.step(10.0, [BUSY, BUSY]) is not None


def test_a_worker_goes_when_those_that_stay_would_be_idle_too() -> None:
    one = scaling()
    assert one.step(0.0, [IDLE] * 3) is None
    assert one.step(19.0, [IDLE] * 3) is None
    assert one.step(20.0, [IDLE] * 3) == Step(2, "20 s idle, 2% now")
    two = scaling()  # a third of each of three is half of each of two: not idle
    for now in range(0, 100, 10):
        assert two.step(float(now), [WorkerLoad(0, 8, 0.3)] * 3) is None


@pytest.mark.parametrize(("loads", "bound"), [([BUSY] * 4, "most"), ([IDLE] * 2, "least")])
def test_it_stays_within_its_bounds(loads: list[WorkerLoad], bound: str) -> None:
    one = scaling()
    assert [one.step(float(now), loads) for now in range(0, 200, 10)] == [None] * 20


def test_a_number_outside_of_the_bounds_is_mended_at_once() -> None:
    assert scaling().step(0.0, [IDLE]) == Step(2, "outside of the requested range")
    assert scaling().step(0.0, [BUSY] * 6) == Step(4, "outside of the requested range")


@given(st.lists(st.floats(0, 1), min_size=50, max_size=200), st.integers(2, 8))
def test_any_load_leads_to_a_number_within_the_bounds_in_single_steps(loads: list[float], most: int) -> None:
    one, count = Scaling(1, most, up_s=3.0, down_s=9.0), 1
    for now, busy in enumerate(loads):
        step = one.step(float(now), [WorkerLoad(0, 8, busy)] * count)
        if step is not None:
            assert abs(step.workers - count) == 1
            count = step.workers
        assert 1 <= count <= most


def test_a_steady_load_never_makes_it_swing() -> None:
    """Under a constant, evenly shared load, no step up or down is reversed."""
    for total in range(1, 33):
        one, count, steps = Scaling(1, 8, up_s=2.0, down_s=2.0), 1, []
        for now in range(200):
            step = one.step(float(now), [WorkerLoad(0, 8, min(1.0, total / 8 / count))] * count)
            if step is not None:
                steps.append(step.workers - count)
                count = step.workers
        assert steps == sorted(steps) or steps == sorted(steps, reverse=True), (total, steps)
        assert len(set(steps)) <= 1, (total, steps)
