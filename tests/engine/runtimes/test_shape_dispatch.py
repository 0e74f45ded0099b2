"""One graph in several fixed shapes: the requested branch answers, and all branches agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as ops

from embedshare.engine.runtimes.shape_dispatch import with_fixed_shapes

SHAPES = [[(1, 4), (1, 4)], [(2, 3), (2, 3)]]


@pytest.fixture(scope="module")
def compiled() -> Any:
    """Return a graph that multiplies its two inputs and sums each row."""
    one, other = (ops.parameter(ov.PartialShape([-1, -1]), np.int64) for _ in range(2))
    product = ops.convert(ops.multiply(one, other), np.float32)
    graph = ov.Model([ops.result(ops.reduce_sum(product, np.array([1]), keep_dims=True))], [one, other])
    return ov.Core().compile_model(with_fixed_shapes(graph, SHAPES), "CPU")


def answer(compiled: Any, shape: tuple[int, int], which: int) -> np.ndarray:
    numbers = np.arange(shape[0] * shape[1]).reshape(shape)
    found: np.ndarray = compiled([numbers, numbers + 1, np.array(which, np.int32)])[0]
    np.testing.assert_array_equal(found, (numbers * (numbers + 1)).sum(1, keepdims=True))
    return found


@pytest.mark.parametrize(
    ("shape", "which"), [((1, 4), 0), ((2, 3), 1), ((5, 7), -1), ((1, 4), -1), ((1, 1), -1)]
)
def test_every_branch_answers_alike(compiled: Any, shape: tuple[int, int], which: int) -> None:
    assert answer(compiled, shape, which).shape == (shape[0], 1)


def test_branches_are_taken_in_any_order(compiled: Any) -> None:
    for shape, which in [((2, 3), 1), ((1, 4), 0), ((9, 2), -1), ((2, 3), 1), ((9, 3), -1), ((1, 4), 0)]:
        answer(compiled, shape, which)


def test_a_fixed_branch_takes_its_own_shape_alone(compiled: Any) -> None:
    with pytest.raises(RuntimeError):
        answer(compiled, (1, 5), 0)


def test_as_many_outputs_as_asked_for_come_from_each_branch() -> None:
    number = ops.parameter(ov.PartialShape([-1, -1]), np.int64)
    results = [ops.result(ops.multiply(number, ops.constant(np.int64(factor)))) for factor in (1, 2, 3)]
    graph = with_fixed_shapes(ov.Model(results, [number]), [[(1, 4)], [(2, 3)]], outputs=2)
    compiled = ov.Core().compile_model(graph, "CPU")
    assert len(compiled.outputs) == 2
    for shape, which in [((1, 4), 0), ((2, 3), 1), ((3, 2), -1)]:
        numbers = np.arange(shape[0] * shape[1]).reshape(shape)
        found = compiled([numbers, np.array(which, np.int32)])
        np.testing.assert_array_equal(found[0], numbers)
        np.testing.assert_array_equal(found[1], numbers * 2)
