"""Packing: each token in one place, texts kept apart, rows full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.engine.runtimes.packing import WIDTHS, Layout, Packed, pack, row_width

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=40)
positions = st.sampled_from([0, 2])


def texts(lengths: list[int]) -> list[list[int]]:
    """Return sequences whose tokens are all different and not 0."""
    ends = np.cumsum(lengths)
    return [list(range(end - length + 1, end + 1)) for length, end in zip(lengths, ends, strict=True)]


def packed(lengths: list[int], first_position: int = 0, one_text_a_row: bool = False) -> Packed:
    result = pack(texts(lengths), Layout(first_position, one_text_a_row))
    assert {array.dtype for array in result} == {np.dtype(np.int64)}
    assert result.input_ids.shape == result.position_ids.shape == result.segments.shape
    return result


@given(lengths, positions, st.booleans())
def test_each_token_is_in_one_place_and_its_text_finds_it(
    lengths: list[int], first_position: int, one_text_a_row: bool
) -> None:
    result = packed(lengths, first_position, one_text_a_row)
    flat = result.input_ids.ravel()
    assert sorted(flat[flat != 0]) == list(range(1, sum(lengths) + 1))
    assert result.places.shape == (len(lengths), row_width(max(lengths)))
    for text, ids in enumerate(texts(lengths)):
        places = result.places[text, : len(ids)]
        assert flat[places].tolist() == ids
        assert (result.segments.ravel()[places] == text).all()
        expected = np.arange(first_position, first_position + len(ids))
        np.testing.assert_array_equal(result.position_ids.ravel()[places], expected)
        np.testing.assert_array_equal(np.diff(places), 1)
        assert places[0] // result.input_ids.shape[1] == places[-1] // result.input_ids.shape[1]
        assert (result.places[text, len(ids) :] == -1).all()


@pytest.mark.parametrize("one_text_a_row", [False, True])
def test_a_padding_token_in_a_text_takes_no_position(one_text_a_row: bool) -> None:
    sequences = [[5, 1, 6, 1, 1, 7], [8, 9]]
    result = pack(sequences, Layout(2, one_text_a_row, padding_id=1))
    found = [result.position_ids.ravel()[places[places >= 0]].tolist() for places in result.places]
    assert found == [[2, 1, 3, 1, 1, 4], [2, 3]]
    plain = pack(sequences, Layout(2, one_text_a_row))
    assert plain.position_ids.ravel()[plain.places[0, :6]].tolist() == [2, 3, 4, 5, 6, 7]


@given(lengths, positions, st.booleans())
def test_where_no_token_is_there_is_no_segment(
    lengths: list[int], first_position: int, one_text_a_row: bool
) -> None:
    result = packed(lengths, first_position, one_text_a_row)
    empty = result.segments == -1
    np.testing.assert_array_equal(empty, result.input_ids == 0)
    assert (result.position_ids[empty] == first_position).all()


@given(lengths, st.booleans())
def test_rows_have_one_of_a_few_widths(lengths: list[int], one_text_a_row: bool) -> None:
    width = packed(lengths, one_text_a_row=one_text_a_row).input_ids.shape[1]
    assert width in WIDTHS or (width == row_width(max(lengths)) and width % 64 == 0)
    assert width >= max(lengths)


@given(st.integers(1, 2000))
def test_a_row_is_as_narrow_as_can_be(tokens: int) -> None:
    width = row_width(tokens)
    assert tokens <= width
    assert all(narrower < tokens for narrower in (*WIDTHS, *range(320, 2048, 64)) if narrower < width)


@given(lengths)
def test_no_two_rows_would_fit_into_one(lengths: list[int]) -> None:
    result = packed(lengths)
    filled = np.sort((result.segments >= 0).sum(axis=1))
    assert len(filled) == 1 or filled[0] + filled[1] > result.input_ids.shape[1]


@given(lengths)
def test_a_batch_costs_no_more_than_a_text_a_row(lengths: list[int]) -> None:
    rows, width = packed(lengths).input_ids.shape
    assert rows * width * (600 + width) <= len(lengths) * row_width(max(lengths)) * (
        600 + row_width(max(lengths))
    )


@given(lengths, lengths)
def test_the_last_shape_is_taken_again_only_where_everything_fits(
    last: list[int], lengths: list[int]
) -> None:
    shape = packed(last).input_ids.shape
    result = pack(texts(lengths), Layout(), (shape[0], shape[1]))
    flat = result.input_ids.ravel()
    assert sorted(flat[flat != 0]) == list(range(1, sum(lengths) + 1))
    for text, ids in enumerate(texts(lengths)):
        assert flat[result.places[text, : len(ids)]].tolist() == ids
    assert result.input_ids.shape in (shape, packed(lengths).input_ids.shape)


@pytest.mark.parametrize(
    ("lengths", "last", "shape"),
    [
        ([14], (1, 24), (1, 24)),  # ten more tokens cost less than another shape
        ([14], (1, 48), (1, 16)),
        ([14], (4, 32), (1, 16)),
        ([14], (1, 8), (1, 16)),
        ([12] * 8, (2, 48), (2, 48)),
        ([10] * 8, (3, 24), (4, 20)),
    ],
)
def test_known_mixes_after_another(lengths: list[int], last: tuple[int, int], shape: tuple[int, int]) -> None:
    assert pack(texts(lengths), Layout(), last).input_ids.shape == shape


@given(lengths)
def test_one_text_a_row_is_plain_padding_from_the_first_column(lengths: list[int]) -> None:
    result = packed(lengths, one_text_a_row=True)
    assert len(result.input_ids) == len(lengths)
    for row in result.segments:
        (text,) = set(row[row >= 0])
        assert (row[: lengths[text]] == text).all()


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([1], (1, 8)),
        ([16], (1, 16)),
        ([17], (1, 20)),
        ([14, 10], (1, 24)),
        ([12] * 10, (10, 12)),
        ([8] * 32, (32, 8)),
        ([60] * 8, (8, 64)),
        ([40, 24] * 8, (8, 64)),
        ([300, 300], (2, 320)),
        ([200, 56, 250], (2, 256)),
    ],
)
def test_rows_and_width_of_known_mixes(lengths: list[int], shape: tuple[int, int]) -> None:
    assert packed(lengths).input_ids.shape == shape
