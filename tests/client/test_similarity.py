"""Similarities equal SentenceTransformer's in type, shape and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SimilarityFunction

from embedshare.client.similarity import NAMES, similarity, similarity_pairwise
from embedshare.errors import InvalidInput

each_measure = pytest.mark.parametrize("name", NAMES)


def rows(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected) is torch.Tensor
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def assert_all_pairs_same(name: str, first: Any, second: Any) -> None:
    assert_same(similarity(name, first, second), SimilarityFunction.to_similarity_fn(name)(first, second))


def assert_pairwise_same(name: str, first: Any, second: Any) -> None:
    expected = SimilarityFunction.to_similarity_pairwise_fn(name)(first, second)
    assert_same(similarity_pairwise(name, first, second), expected)


@each_measure
@given(n1=st.integers(1, 9), n2=st.integers(1, 9), dimension=st.integers(1, 48), seed=st.integers(0, 9999))
def test_random_rows_score_alike(name: str, n1: int, n2: int, dimension: int, seed: int) -> None:
    first, second = rows(seed, n1, dimension), rows(seed + 1, n2, dimension)
    assert_all_pairs_same(name, first, second)
    assert_pairwise_same(name, first, rows(seed + 2, n1, dimension))


@each_measure
def test_rows_of_the_models_size_score_alike(name: str) -> None:
    assert_all_pairs_same(name, rows(1, 100, 384), rows(2, 30, 384))
    assert_pairwise_same(name, rows(1, 100, 384), rows(2, 100, 384))


@each_measure
@pytest.mark.parametrize(
    "form", [torch.from_numpy, list, lambda array: [torch.from_numpy(row) for row in array]]
)
def test_tensors_and_lists_score_as_arrays_do(name: str, form: Any) -> None:
    first, second = rows(3, 4, 16), rows(4, 4, 16)
    assert_same(similarity(name, form(first), form(second)), similarity(name, first, second))
    assert_same(
        similarity_pairwise(name, form(first), form(second)), similarity_pairwise(name, first, second)
    )
    assert_all_pairs_same(name, form(first), form(second))


@each_measure
def test_a_single_embedding_is_a_row(name: str) -> None:
    assert_all_pairs_same(name, rows(5, 16), rows(6, 16))
    assert_all_pairs_same(name, rows(5, 16), rows(6, 3, 16))


@each_measure
def test_a_zero_row_scores_alike(name: str) -> None:
    first = rows(7, 3, 16)
    first[1] = 0
    assert_all_pairs_same(name, first, first)
    assert_pairwise_same(name, first, first)


@each_measure
def test_no_rows_score_as_an_empty_matrix(name: str) -> None:
    empty = np.empty((0, 16), np.float32)
    assert_all_pairs_same(name, empty, rows(8, 3, 16))
    assert_all_pairs_same(name, rows(8, 3, 16), empty)
    assert_pairwise_same(name, empty, empty)


@each_measure
def test_quantized_and_wider_embeddings_are_compared_as_float32(name: str) -> None:
    integers = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    for other in (integers, integers.astype(np.float64)):
        assert_same(similarity(name, other, other), similarity(name, *[integers.astype(np.float32)] * 2))


@each_measure
def test_other_dimensions_are_refused_with_both(name: str) -> None:
    for measure in (similarity, similarity_pairwise):
        with pytest.raises(InvalidInput, match="of 16 and of 8 dimensions"):
            measure(name, rows(9, 2, 16), rows(9, 2, 8))
