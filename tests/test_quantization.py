"""Quantized embeddings equal SentenceTransformer's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sentence_transformers.util.quantization import quantize_embeddings

from embedshare.errors import InvalidInput
from embedshare.quantization import PRECISIONS, quantize

SHAPES = st.tuples(st.integers(2, 12), st.integers(1, 40))
FLOATS = st.floats(-1, 1, width=32, allow_subnormal=False)


def assert_same(rows: np.ndarray, precision: str) -> None:
    before = rows.copy()
    found, expected = quantize(rows, precision), quantize_embeddings(rows, precision)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(2, 384), (1000, 384), (3, 7), (2, 1), (5, 8), (64, 1023)])
def test_random_rows_are_quantized_alike(precision: str, shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
    assert_same(rows, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(rows=arrays.arrays(np.float32, SHAPES, elements=FLOATS))
def test_any_rows_are_quantized_alike(precision: str, rows: np.ndarray) -> None:
    assert_same(rows, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_dimension_without_a_range_is_quantized_alike(precision: str) -> None:
    assert_same(np.tile(np.float32([0.5, 0.0, -0.5, 1.0]), (3, 1)), precision)


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
@pytest.mark.parametrize("shape", [(1, 384), (384,), (0, 384), (1, 5)])
def test_the_binary_ones_take_any_number_of_rows(precision: str, shape: tuple[int, ...]) -> None:
    assert_same(np.random.default_rng(1).normal(size=shape).astype(np.float32), precision)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_no_rows_at_all_are_quantized_alike(precision: str) -> None:
    assert_same(np.empty((0, 384), np.float32), precision)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_a_range_cannot_come_from_a_single_row_in_either(precision: str) -> None:
    row = np.random.default_rng(2).normal(size=(1, 8)).astype(np.float32)
    with pytest.raises(InvalidInput, match="at least two texts"):
        quantize(row, precision)
    with pytest.raises(ValueError, match="single embedding"):
        quantize_embeddings(row, precision)
