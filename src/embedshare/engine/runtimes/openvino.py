"""OpenVINO: the fastest way on a CPU. Needs neither torch nor the model, only the converted graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue

import numpy as np
import openvino as ov

from embedshare.engine.runtimes.packing import Layout, pack
from embedshare.errors import OutOfMemory, UnsupportedModel

VERSION = str(ov.__version__)


def resolve_dtype(dtype: str) -> str:
    """The precision that "auto" means on this CPU.

    Raises UnsupportedModel for one it does not compute in.
    """
    if dtype == "float16":
        raise UnsupportedModel("OpenVINO computes in float32 or bfloat16 on a CPU, not in float16")
    if dtype == "auto":
        capable = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "bfloat16" if capable else "float32"
    return dtype


def write_graph(graph: ov.Model, path: Path) -> None:
    """Write a graph in full precision; its weights go beside it."""
    ov.save_model(graph, path, compress_to_fp16=False)


@dataclass(slots=True)
class _Copy:
    """The compiled graph, ready to run, and the shape that it last ran."""

    request: ov.InferRequest
    shape: tuple[int, int] | None = None


class OpenVinoRuntime:
    """Runs a converted graph on the CPU.

    A batch uses all cores. Two copies of the graph, so that a small batch need not wait for a large one: the
    operating system shares the cores between them.
    """

    name = "openvino"
    device = "cpu"
    parallel = 1
    interactive_budget = 512
    bulk_budget = 2048

    def __init__(self, graph: ov.Model | Path, layout: Layout, dtype: str) -> None:
        self.dtype = resolve_dtype(dtype)
        self._layout = layout
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.dtype == "bfloat16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = ov.Core()
        model = core.read_model(graph) if isinstance(graph, Path) else graph
        # The last one used goes first: its weights are still in the processor's cache.
        self._copies: LifoQueue[_Copy] = LifoQueue()
        for _ in range(2 * self.parallel):  # a lane each
            self._copies.put(_Copy(core.compile_model(model, "CPU", options).create_infer_request()))

    def run(self, sequences: list[list[int]]) -> np.ndarray:
        """See interface.Runtime."""
        copy = self._copies.get()
        try:
            packed = pack(sequences, self._layout, copy.shape)
            rows, width = packed.input_ids.shape
            copy.shape = rows, width
            vectors: np.ndarray = copy.request.infer(list(packed))[0].copy()
            return vectors
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error).lower():
                raise
            raise OutOfMemory(f"the CPU has no memory for {len(sequences)} sequences: {error}") from None
        finally:
            self._copies.put(copy)
