"""Histograms: each value is counted once, and percentiles are correct to within a bucket."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.telemetry.histogram import MILLISECONDS, SEQUENCES, TOKENS, Histogram, quantile

values = st.floats(0, 1e6, allow_nan=False)
bounds = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=20, unique=True).map(sorted)


def filled(edges: list[float], observed: list[float]) -> Histogram:
    histogram = Histogram(edges)
    for value in observed:
        histogram.observe(value)
    return histogram


@given(bounds, st.lists(values, max_size=60))
def test_every_value_is_counted_once_in_the_first_bucket_that_holds_it(
    edges: list[float], observed: list[float]
) -> None:
    found = filled(edges, observed).snapshot()
    assert found["bounds"] == edges
    assert len(found["counts"]) == len(edges) + 1
    assert sum(found["counts"]) == len(observed)
    assert found["sum"] == pytest.approx(sum(observed))
    for number, edge in enumerate(edges):
        assert sum(found["counts"][: number + 1]) == sum(value <= edge for value in observed)


@given(st.lists(values, min_size=1, max_size=60), st.floats(0, 1))
def test_a_percentile_lies_in_the_bucket_of_the_value_that_it_is_of(observed: list[float], q: float) -> None:
    found = filled(list(MILLISECONDS), observed).snapshot()
    ranked = sorted(observed)
    exact = ranked[max(0, -int(-q * len(ranked) // 1) - 1)]
    got = quantile(found["bounds"], found["counts"], q)
    assert got is not None
    edges = [0.0, *MILLISECONDS, float("inf")]
    above = next(number for number, edge in enumerate(edges[1:], 1) if exact <= edge)
    low, high = edges[above - 1], min(edges[above], MILLISECONDS[-1])
    assert min(low, high) <= got <= high


@given(bounds, st.lists(values, min_size=1, max_size=60), st.floats(0, 1), st.floats(0, 1))
def test_percentiles_ascend(edges: list[float], observed: list[float], one: float, other: float) -> None:
    found = filled(edges, observed).snapshot()
    low, high = (quantile(found["bounds"], found["counts"], q) for q in sorted((one, other)))
    assert low is not None
    assert high is not None
    assert low <= high + 1e-9 * max(1.0, abs(high))


def test_percentiles_of_known_values_are_what_they_are() -> None:
    observed = [number / 10 for number in range(1, 10_001)]  # 0.1 to 1000 ms, evenly spaced
    found = filled(list(MILLISECONDS), observed).snapshot()
    for q in (0.25, 0.5, 0.75, 0.95):
        assert quantile(found["bounds"], found["counts"], q) == pytest.approx(1000 * q, rel=0.01)
    assert statistics.fmean(observed) == pytest.approx(found["sum"] / sum(found["counts"]))


def test_what_came_between_two_snapshots_is_their_difference() -> None:
    histogram = filled([1, 2, 4], [0.5, 3, 9])
    before = histogram.snapshot()
    for value in (1.5, 1.6):
        histogram.observe(value)
    after = histogram.snapshot()
    assert before["counts"] == [1, 0, 1, 1]  # a copy, unaffected by later values
    between = [b - a for a, b in zip(before["counts"], after["counts"], strict=True)]
    assert between == [0, 2, 0, 0]
    assert quantile(after["bounds"], between, 0.5) == 1.5


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
def test_there_is_no_percentile_of_nothing_and_none_above_the_last_bound(q: float) -> None:
    assert quantile([1.0, 2.0], [0, 0, 0], q) is None
    assert quantile([1.0, 2.0], [0, 0, 3], q) == 2.0


@pytest.mark.parametrize("edges", [[], [1.0, 1.0], [2.0, 1.0]])
def test_bounds_that_do_not_ascend_are_refused(edges: list[float]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Histogram(edges)


@pytest.mark.parametrize("edges", [MILLISECONDS, SEQUENCES, TOKENS])
def test_the_bounds_in_use_ascend(edges: tuple[float, ...]) -> None:
    assert list(Histogram(edges).snapshot()["bounds"]) == sorted(set(edges))
