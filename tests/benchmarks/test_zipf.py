"""The optimum that the benchmark of many models holds its loads against."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from benchmarks import zipf


def test_the_textbook_s_string_of_references_has_its_known_counts() -> None:
    """Silberschatz, Operating System Concepts: 9 faults by the optimum and 12 by LRU, with three frames."""
    asked = [str(page) for page in (7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1)]
    assert (zipf.optimal_loads(asked, 3), zipf.lru_loads(asked, 3)) == (9, 12)


def _fewest(asked: list[str], room: int) -> int:
    """By trying each eviction."""
    states = {frozenset[str](): 0}
    for name in asked:
        after: dict[frozenset[str], int] = {}
        for held, loads in states.items():
            if name in held:
                choices = [held]
            elif len(held) < room:
                choices = [held | {name}]
            else:
                choices = [(held - {gone}) | {name} for gone in held]
            for one in choices:
                cost = loads + (name not in held)
                after[one] = min(after.get(one, cost), cost)
        states = after
    return min(states.values(), default=0)


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.integers(1, 3))
def test_no_order_of_evictions_needs_fewer_loads(asked: list[str], room: int) -> None:
    assert zipf.optimal_loads(asked, room) == _fewest(asked, room) <= zipf.lru_loads(asked, room)


def test_models_that_fit_are_loaded_once() -> None:
    asked = list(itertools.islice(itertools.cycle("abc"), 30))
    assert (zipf.optimal_loads(asked, 3), zipf.lru_loads(asked, 3), zipf.lru_loads(asked, 2)) == (3, 3, 30)
