"""OpenVINO: the fastest way on a CPU.

Converted straight from the loaded model; nothing is written to disk.
"""

from __future__ import annotations

import warnings
from queue import SimpleQueue

import numpy as np
import openvino as ov
import torch
from loguru import logger
from sentence_transformers import SentenceTransformer

from embedshare.engine.runtimes.embedder import Embedder, Layout, find_layout, plain_forward, smallest_cosine
from embedshare.errors import OutOfMemory, UnsupportedModel

#: The smallest cosine to float32 that a precision may have; both are one vector space (see identity.py).
_CLOSE = 0.9995


def resolve_dtype(dtype: str) -> str:
    """The precision that "auto" means on this CPU.

    Raises UnsupportedModel for one it does not compute in.
    """
    capable = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if dtype == "float16":
        raise UnsupportedModel("OpenVINO computes in float32 or bfloat16 on a CPU, not in float16")
    if dtype == "auto":
        return "bfloat16" if capable else "float32"
    return dtype


class OpenVinoRuntime:
    """Runs the model's converted graph on the CPU.

    A batch uses all cores, so one runs at a time.
    """

    name = "openvino"
    device = "cpu"
    parallel = 1
    interactive_budget = 512
    bulk_budget = 2048

    def __init__(self, model: SentenceTransformer, dtype: str, sample: list[list[int]]) -> None:
        self.dtype = resolve_dtype(dtype)
        embedder = Embedder(model).eval()
        layout = find_layout(model, embedder, sample)
        if layout is None:
            raise UnsupportedModel("the model agrees with itself in no layout that one graph can take")
        self._layout: Layout = layout
        compiled = _compile(embedder, layout, sample, self.dtype)
        self._requests: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(self.parallel):
            self._requests.put(compiled.create_infer_request())
        cosine = smallest_cosine(self.run(sample), plain_forward(model, sample))
        if cosine < _CLOSE:
            raise UnsupportedModel(f"the converted graph differs from the model: cosine {cosine:.5f}")
        logger.debug("converted to OpenVINO, {}, {}, cosine {:.5f}", layout, self.dtype, cosine)

    def run(self, sequences: list[list[int]]) -> np.ndarray:
        """See interface.Runtime."""
        request = self._requests.get()
        try:
            vectors: np.ndarray = request.infer(list(self._layout(sequences)))[0].copy()
            return vectors
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error).lower():
                raise
            raise OutOfMemory(f"the CPU has no memory for {len(sequences)} sequences: {error}") from None
        finally:
            self._requests.put(request)


def _compile(embedder: Embedder, layout: Layout, sample: list[list[int]], dtype: str) -> ov.CompiledModel:
    example = tuple(torch.from_numpy(array) for array in layout(sample))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # tracing tells of every Python branch; the result is verified instead
            graph = ov.convert_model(
                embedder, example_input=example, input=[ov.PartialShape([-1, -1])] * len(example)
            )
    except Exception as error:  # the converter raises whatever the traced model does
        raise UnsupportedModel(f"OpenVINO does not convert the model: {error}") from error
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    return ov.Core().compile_model(graph, "CPU", options)
