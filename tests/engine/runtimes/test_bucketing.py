"""Cutting a batch into launches: each text once, within bounds, in few shapes, with little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.engine.runtimes.bucketing import LEAST_WIDTH, Launch, Shapes, plan, write

FIXED = Shapes(longest=256, launch_tokens=4096, free_tokens=256, fixed=True)
EXACT = Shapes(longest=256, launch_tokens=2048, free_tokens=64, fixed=False)
sorted_lengths = st.lists(st.integers(1, 256), min_size=1, max_size=150).map(
    lambda lengths: sorted(lengths, reverse=True)
)
shapes = st.builds(
    Shapes, st.just(256), st.sampled_from([64, 300, 2048, 4096]), st.integers(0, 600), st.booleans()
)


def tokens_of(launches: list[Launch]) -> int:
    return sum(launch.rows * launch.width for launch in launches)


@given(sorted_lengths, shapes)
def test_each_text_is_in_one_launch_that_it_fits(lengths: list[int], shapes: Shapes) -> None:
    first = start = 0
    for launch in plan(lengths, shapes):
        assert (launch.first, launch.start) == (first, start)
        assert 1 <= launch.texts <= launch.rows
        assert lengths[first] <= launch.width <= shapes.longest
        assert launch.rows == 1 or launch.rows * launch.width <= shapes.launch_tokens
        first, start = first + launch.texts, start + launch.rows * (launch.width + 1)
    assert first == len(lengths)


@given(sorted_lengths, shapes)
def test_a_launch_is_padded_by_no_more_than_another_launch_costs(lengths: list[int], shapes: Shapes) -> None:
    for launch in plan(lengths, shapes):
        of_own_width = sum(map(shapes.width_of, lengths[launch.first : launch.first + launch.texts]))
        # one allowance for shorter texts, one for empty rows; a whole small launch is free
        assert launch.rows * launch.width - of_own_width <= 2 * shapes.free_tokens


@given(sorted_lengths)
def test_fixed_shapes_are_few(lengths: list[int]) -> None:
    for launch in plan(lengths, FIXED):
        assert launch.width in (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
        assert launch.rows in (*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128,
                               160, 192, 224, 256)  # fmt: skip
        if launch.rows * launch.width <= FIXED.free_tokens:
            assert bin(launch.rows).count("1") == bin(launch.width).count("1") == 1


@given(sorted_lengths)
def test_without_fixed_shapes_no_row_is_empty_and_no_row_longer_than_its_longest_text(
    lengths: list[int],
) -> None:
    for launch in plan(lengths, EXACT):
        assert launch.rows == launch.texts
        assert launch.width == lengths[launch.first]


@pytest.mark.parametrize(
    ("lengths", "shapes_of_launches"),
    [
        ([7], [(1, 16)]),
        ([17], [(1, 32)]),  # 24 is enough; 32 costs nothing more and recurs more often
        ([100], [(1, 128)]),
        ([256], [(1, 256)]),
        ([20, 12, 9, 7, 6], [(8, 32)]),  # five callers' queries in one launch
        ([16] * 256, [(256, 16)]),
        ([16] * 300, [(256, 16), (48, 16)]),  # the last four rows are empty
        ([128] * 33, [(32, 128), (1, 128)]),  # 31 more rows cost more than one more launch
        ([128] * 31, [(32, 128)]),
        ([256] * 2 + [20] * 100, [(2, 256), (96, 24), (4, 32)]),
        ([130] * 12 + [60] * 40, [(12, 160), (40, 64)]),
        ([70, 64, 64, 60, 33, 16], [(6, 80)]),
    ],
)
def test_launches_of_known_mixes(lengths: list[int], shapes_of_launches: list[tuple[int, int]]) -> None:
    assert [(launch.rows, launch.width) for launch in plan(lengths, FIXED)] == shapes_of_launches


def test_rows_left_over_take_the_next_shorter_texts() -> None:
    (launch,) = plan([64] * 19 + [16], FIXED._replace(free_tokens=64))
    assert (launch.texts, launch.rows, launch.width) == (20, 20, 64)


def test_natural_text_is_padded_little() -> None:
    dice = np.random.default_rng(20)
    lengths = sorted(np.clip(dice.lognormal(3.4, 0.8, 2000), 3, 256).astype(int).tolist(), reverse=True)
    large = FIXED._replace(launch_tokens=16_384)
    assert tokens_of(plan(lengths, large)) < 1.2 * sum(lengths)
    assert len(plan(lengths, large)) < 40


@pytest.mark.parametrize("longest", [10, 77, 250, 514])
def test_no_row_is_longer_than_the_model_has_positions(longest: int) -> None:
    odd = FIXED._replace(longest=longest)
    for length in range(1, longest + 1):
        (launch,) = plan([length], odd)
        assert length <= launch.width <= longest
        assert launch.width >= min(LEAST_WIDTH, longest)


@given(sorted_lengths, shapes, st.sampled_from([0, 1]))
def test_what_is_written_is_read_back(lengths: list[int], shapes: Shapes, padding_id: int) -> None:
    sequences = [list(range(1000 + text, 1000 + text + length)) for text, length in enumerate(lengths)]
    launches = plan(lengths, shapes)
    buffer = np.full(launches[-1].end + 5, -7, np.int32)
    write(sequences, launches, padding_id, buffer)
    read = []
    for launch in launches:
        heads, ids = np.split(buffer[launch.start : launch.end], [launch.rows])
        ids = ids.reshape(launch.rows, launch.width)
        for row, length in zip(ids[: launch.texts], heads, strict=False):
            read.append(row[:length].tolist())
            assert (row[length:] == padding_id).all()
        assert (heads[launch.texts :] == 1).all()
        assert (ids[launch.texts :] == padding_id).all()
    assert read == sequences
    assert (buffer[launches[-1].end :] == -7).all()


def test_a_text_without_tokens_has_one_of_padding() -> None:
    launches = plan([3, 0], EXACT)
    buffer = np.zeros(launches[-1].end, np.int32)
    write([[5, 6, 7], []], launches, 9, buffer)
    assert [launch.width for launch in launches] == [3]
    assert buffer.tolist() == [3, 1, 5, 6, 7, 9, 9, 9]
