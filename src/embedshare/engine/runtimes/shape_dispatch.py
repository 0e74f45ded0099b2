"""One graph in several fixed shapes: OpenVINO prepares each once, and switching between them is free.

A graph with open shapes needs 0.6 ms and more to change its shape, a third of a short query's time. Here
copies with fixed shapes are the branches of `If` operations, next to the open graph; all share one set of
weights in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
from openvino import opset15 as ops


def with_fixed_shapes(
    graph: ov.Model, shapes: Sequence[Sequence[tuple[int, ...]]], outputs: int = 1
) -> ov.Model:
    """`graph` with one more input: the index in `shapes` of its inputs' shapes, -1 for any other.

    Each entry of `shapes` holds one shape for each input of `graph`, all of two dimensions. It has the first
    `outputs` outputs of `graph`.
    """
    inputs = [_open_input(one.get_element_type()) for one in graph.inputs]
    which = ops.parameter(ov.PartialShape([]), np.int32)
    results = _results(_branches(graph, shapes, 0, inputs, which, outputs))
    return ov.Model(results, [*inputs, which], "by shape")


def _branches(
    graph: ov.Model,
    shapes: Sequence[Sequence[tuple[int, ...]]],
    number: int,
    inputs: list[ov.Node],
    which: ov.Node,
    outputs: int,
) -> list[ov.Output]:
    """The branch of this shape, else the check for the next one; the open graph at the end."""
    choice = ops.if_op(ops.equal(which, ops.constant(np.array(number, np.int32))).output(0))
    fixed = _fixed(graph, shapes[number])
    last = number + 1 == len(shapes)
    if last:
        other = graph.clone()
    else:
        inner = [_open_input(one.get_element_type()) for one in inputs]
        inner_which = ops.parameter(ov.PartialShape([]), np.int32)
        results = _results(_branches(graph, shapes, number + 1, inner, inner_which, outputs))
        other = ov.Model(results, [*inner, inner_which])
    choice.set_then_body(fixed)
    choice.set_else_body(other)
    others = other.get_parameters()
    for outer, then, otherwise in zip(inputs, fixed.get_parameters(), others[: len(inputs)], strict=True):
        choice.set_input(outer.output(0), then, otherwise)
    if not last:
        choice.set_input(which.output(0), None, others[-1])
    pairs = list(zip(fixed.get_results(), other.get_results(), strict=False))[:outputs]
    return [choice.set_output(one, another) for one, another in pairs]


def _results(outputs: list[ov.Output]) -> list[ov.Node]:
    return [ops.result(one) for one in outputs]


def _fixed(graph: ov.Model, shapes: Sequence[tuple[int, ...]]) -> ov.Model:
    """A copy of the graph for one shape, which shares the graph's constants."""
    copy = graph.clone()
    inputs = []
    for parameter, shape in zip(copy.get_parameters(), shapes, strict=True):
        outer = _open_input(parameter.get_element_type())
        known = ops.reshape(outer, ops.constant(np.array(shape, np.int64)), special_zero=False)
        parameter.output(0).replace(known.output(0))
        inputs.append(outer)
    return ov.Model(copy.get_results(), inputs)


def _open_input(element_type: ov.Type) -> ov.Node:
    return ops.parameter(ov.PartialShape([-1, -1]), element_type)
