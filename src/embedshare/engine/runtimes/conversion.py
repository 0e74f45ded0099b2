"""A loaded model to an OpenVINO graph, verified against the model that it was made of. Needs torch."""

from __future__ import annotations

import warnings

import numpy as np
import openvino as ov
import torch
from sentence_transformers import SentenceTransformer

from embedshare.engine.runtimes.embedder import Embedder, plain_forward, smallest_cosine
from embedshare.engine.runtimes.openvino import cpu_core
from embedshare.engine.runtimes.packing import Layout, pack
from embedshare.errors import UnsupportedModel

#: The smallest cosine in float32 between the graph and the model.
_SAME = 0.99999


def convert(
    model: SentenceTransformer, embedder: Embedder, layout: Layout, sample: list[list[int]]
) -> ov.Model:
    """The graph of `embedder` for batches in `layout`.

    Raises UnsupportedModel where it cannot be made, or differs from the model.
    """
    arrays = pack(sample, layout)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # tracing tells of every Python branch; the result is verified instead
            graph = ov.convert_model(
                embedder,
                example_input=tuple(torch.from_numpy(array) for array in arrays),
                input=[ov.PartialShape([-1, -1])] * len(arrays),
            )
    except Exception as error:  # the converter raises whatever the traced model does
        raise UnsupportedModel(f"OpenVINO does not convert the model: {error}") from error
    compiled = cpu_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: np.ndarray = compiled(list(pack(sample[::-1], layout)))[0]
    cosine = smallest_cosine(found[::-1], plain_forward(model, sample))
    if cosine < _SAME:
        raise UnsupportedModel(f"the converted graph differs from the model: cosine {cosine:.6f}")
    return graph
