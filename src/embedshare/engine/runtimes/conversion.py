"""Converts a loaded model to an OpenVINO graph, verified against that model. Needs torch."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import openvino as ov
import torch

from embedshare.engine.runtimes.embedder import rows_of
from embedshare.engine.runtimes.heads import DenseHead, Head
from embedshare.engine.runtimes.openvino import cpu_core
from embedshare.engine.runtimes.outputs_proof import OutputsProof
from embedshare.engine.runtimes.packing import WIDTHS, Layout, pack
from embedshare.engine.runtimes.proof import SHORT, Proof, in_batches
from embedshare.errors import UnsupportedModel


def convert(
    embedder: Any,
    layout: Layout,
    proof: Proof | OutputsProof,
    sequences: list[list[int]],
    head: Head | None = None,
) -> ov.Model:
    """The graph of `embedder` for batches in `layout`, checked against the proof in float32.

    `sequences`: the token ids of the proof's samples. Raises UnsupportedModel if it cannot be made, or
    differs from the model.
    """
    head = head or DenseHead()
    short = [ids for ids in sequences if len(ids) <= SHORT]
    arrays = head.inputs(short, pack(short, layout))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of every branch; the result is verified instead
            graph = ov.convert_model(
                embedder,
                example_input=tuple(torch.from_numpy(array) for array in arrays),
                input=[ov.PartialShape([-1, -1])] * len(arrays),
            )
            add_head_inputs(graph, embedder.heads)
    except Exception as error:  # the converter raises the traced model's errors too
        raise UnsupportedModel(f"OpenVINO cannot convert the model: {error}") from error
    compiled = cpu_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(batch: list[list[int]]) -> np.ndarray:
        packed = pack(batch, layout)
        try:
            return head.rows(batch, packed, compiled(head.inputs(batch, packed)))
        except RuntimeError as error:
            raise UnsupportedModel(f"the converted graph does not run at every width: {error}") from error

    proof.check(in_batches(sequences, run), "the converted graph's vectors")
    cuts = _cuts(sequences)
    own = np.concatenate([rows_of(embedder, head, [ids], pack([ids], layout), "cpu") for ids in cuts])
    found = np.concatenate([run([ids]) for ids in cuts])
    proof.like(cuts, own).check(found, "the converted graph's vectors")
    return graph


def _cuts(sequences: list[list[int]]) -> list[list[int]]:
    """Sequences for rows of each width: tracing keeps the one branch taken of code that depends on the texts'
    length."""
    longest = max(sequences, key=len)
    return [longest[:width] for width in WIDTHS if width <= len(longest)] or [longest]


def add_head_inputs(graph: ov.Model, heads: int) -> None:
    """Make the input of each of up to `heads` products at the graph's end, as a Dense module's, an output.

    In bfloat16 the CPU plugin keeps everything between an output and the products before it in float32: the
    sums and norms of every layer, up to the next product. With a Dense at the end all would be rounded
    (OpenVINO 2026.4; all-MiniLM-L6-v2 with such a head: cosine 0.99989, not 0.99996).
    """
    end = graph.output(0).get_node().input_value(0)
    for _ in range(heads):
        products = _products_before(end)
        if len(products) != 1:
            return
        end = products[0].input_value(0)
        graph.add_outputs(end)


def _products_before(end: ov.Output) -> list[ov.Node]:
    """The nearest matrix products on every path back from `end`."""
    products, seen, left = [], set(), [end.get_node()]
    while left:
        node = left.pop()
        name = node.get_friendly_name()  # unique in a graph; each access makes a new Node
        if name in seen:
            continue
        seen.add(name)
        if node.get_type_name() == "MatMul":
            products.append(node)
        else:
            left += [value.get_node() for value in node.input_values()]
    return products
