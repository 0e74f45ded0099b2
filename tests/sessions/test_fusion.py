"""Reciprocal rank fusion, by hand and by its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.sessions.fusion import reciprocal_ranks

RANKING = st.lists(st.integers(0, 20), unique=True, max_size=15)


def test_a_document_of_both_rankings_comes_before_the_first_of_one() -> None:
    found = reciprocal_ranks([["a", "b", "c"], ["d", "b"]])
    assert [id for id, _ in found] == ["b", "a", "d", "c"]
    assert [score for _, score in found] == pytest.approx([2 / 62, 1 / 61, 1 / 61, 1 / 63])


def test_equal_scores_are_ordered_by_the_first_ranking_and_then_by_id() -> None:
    assert [id for id, _ in reciprocal_ranks([["b", "a"], ["a", "b"]])] == ["b", "a"]
    assert [id for id, _ in reciprocal_ranks([[], ["z"], ["y"]])] == ["y", "z"]


def test_nothing_is_fused_to_nothing() -> None:
    assert reciprocal_ranks([]) == reciprocal_ranks([[], []]) == []


@given(RANKING, RANKING)
def test_each_id_has_the_sum_of_its_reciprocal_ranks(dense: list[int], sparse: list[int]) -> None:
    found = reciprocal_ranks([dense, sparse])
    expected = {
        id: sum(1 / (61 + ranking.index(id)) for ranking in (dense, sparse) if id in ranking)
        for id in {*dense, *sparse}
    }
    assert dict(found) == pytest.approx(expected)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
