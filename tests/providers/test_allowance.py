"""Rates hold in every minute, budgets over restarts, and texts in requests keep their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.errors import Overloaded
from embedshare.models.spec import RemoteSpec
from embedshare.providers import batches
from embedshare.providers.allowance import WINDOW_S, Allowance, Rate
from embedshare.providers.spending import Spending


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 20), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 25)), max_size=40))
def test_no_minute_has_more_than_the_limit(limit: int, requests: list[tuple[float, int]]) -> None:
    rate, now, uses = Rate(limit), 0.0, []
    for pause_s, amount in requests:
        now += pause_s
        moment = rate.moment(amount, now)
        assert moment >= now
        uses.append(rate.take(min(amount, limit), moment))
    for use in uses:
        within = [one.amount for one in uses if use.moment <= one.moment < use.moment + WINDOW_S]
        assert sum(within) <= limit
    assert [use.moment for use in uses] == sorted(use.moment for use in uses)


@given(st.integers(1, 20), st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_a_rate_makes_no_one_wait_longer_than_it_must(limit: int, amounts: list[int]) -> None:
    rate, used, now = Rate(limit), 0, 0.0
    for amount in amounts:
        moment = rate.moment(amount, now)
        if used + min(amount, limit) <= limit:
            assert moment == now
        used += min(amount, limit)
        rate.take(min(amount, limit), moment)
        if used >= limit:
            assert rate.moment(1, now) <= WINDOW_S * (1 + 2 * used / limit)  # amounts do not fill each minute


def allowance(clock: Callable[[], float], spending: Spending, **fields: float | int) -> Allowance:
    return Allowance("m", RemoteSpec(**fields), spending, clock)  # type: ignore[arg-type]


def test_an_answer_corrects_the_estimate_of_its_tokens() -> None:
    clock = Clock()
    one = allowance(clock, Spending(), tokens_per_minute=100)
    one.reserve(90, 0).settle(10)
    one.reserve(90, 0).give_back()
    one.reserve(90, 0)
    with pytest.raises(Overloaded) as raised:
        one.reserve(20, 59.9)
    assert raised.value.fields["retry_after_s"] == 60
    clock.now += 30
    assert one.reserve(20, 60).moment == 1060


def test_requests_wait_in_their_order() -> None:
    one = allowance(Clock(), Spending(), requests_per_minute=2)
    moments = [one.reserve(1, 1000).moment for _ in range(5)]
    assert moments == [1000, 1000, 1060, 1060, 1120]


def test_money_that_requests_under_way_may_cost_counts_for_the_budget() -> None:
    spending = Spending()
    one = allowance(Clock(), spending, price_per_million_tokens=1e6, budget_per_month=100)
    first = one.reserve(60, 0)
    with pytest.raises(Overloaded, match="has spent 60 of its budget of 100"):
        one.reserve(60, 0)
    first.settle(20)
    one.reserve(60, 0).give_back()
    assert one.spent_this_month == 20
    one.reserve(80, 0)


def test_spending_is_kept_over_restarts_and_ends_with_the_month(tmp_path: Path) -> None:
    path, month = tmp_path / "spending.json", "2026-11"
    Spending(path, lambda: month).add("m", 1.5)
    again = Spending(path, lambda: month)
    again.add("m", 1.0)
    again.add("n", 0.25)
    assert (Spending(path, lambda: month).of("m"), again.of("n"), again.of("o")) == (2.5, 0.25, 0.0)
    month = "2026-12"
    assert again.of("m") == Spending(path, lambda: month).of("m") == 0.0


def test_spending_goes_on_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spending = Spending(tmp_path / "file" / "spending.json")
    spending.add("m", 2.0)
    assert spending.of("m") == 2.0


@given(st.lists(st.integers(0, 50)), st.integers(1, 7), st.integers(1, 60))
def test_runs_hold_every_text_once_and_in_order(sizes: list[int], most: int, most_size: int) -> None:
    runs = batches.split(sizes, most, most_size)
    assert [number for run in runs for number in range(len(sizes))[run]] == list(range(len(sizes)))
    for run in runs:
        assert 1 <= len(sizes[run]) <= most
        assert sum(sizes[run]) <= most_size or len(sizes[run]) == 1


@given(st.integers(0, 10_000), st.lists(st.integers(0, 1000), min_size=1))
def test_shares_of_tokens_add_up(total: int, sizes: list[int]) -> None:
    shares = batches.shared_out(total, sizes)
    assert len(shares) == len(sizes)
    assert sum(shares) == total
    assert min(shares) >= 0
