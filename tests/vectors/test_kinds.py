"""The kind of index for a set, and its memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.errors import InvalidInput
from embedshare.vectors import kinds


@pytest.mark.parametrize(
    ("count", "dimension", "kind"),
    [(0, 384, "flat"), (20_000, 384, "flat"), (100_000, 384, "hnsw"), (500_000, 384, "hnsw"),
     (1_000_000, 384, "ivf,pq"), (100_000, 32, "flat"), (5_000, 4096, "hnsw")],
)  # fmt: skip
def test_auto_goes_by_how_many_values_a_search_would_read(count: int, dimension: int, kind: str) -> None:
    assert kinds.resolve("auto", count, dimension) == kind


def test_a_set_too_small_for_a_structure_is_searched_exactly() -> None:
    assert kinds.resolve("hnsw", 999, 384) == "flat"
    assert kinds.resolve("ivf,pq", 9_999, 384) == "flat"
    assert kinds.resolve("ivf,pq", 10_000, 384) == "ivf,pq"


@given(st.integers(1, 5000))
def test_a_vector_is_cut_into_equal_parts_of_four_values_or_more(dimension: int) -> None:
    parts = kinds.subvectors(dimension)
    assert dimension % parts == 0
    assert dimension // parts >= min(4, dimension)


def test_codes_take_a_third_of_what_the_vectors_do() -> None:
    assert kinds.bytes_of("ivf,pq", 1000, 384) < kinds.bytes_of("flat", 1000, 384) / 3
    assert kinds.bytes_of("hnsw", 1000, 384) > kinds.bytes_of("flat", 1000, 384)


def test_names_are_checked_and_told() -> None:
    assert kinds.check("cosine", "ivf_pq") == ("cosine", "ivf,pq")
    with pytest.raises(InvalidInput, match="metric is 'L1'; allowed: l2, cosine, ip"):
        kinds.check("L1", "auto")
    with pytest.raises(InvalidInput, match="kind is 'tree'; allowed: flat; hnsw; ivf,pq; auto"):
        kinds.check("l2", "tree")
