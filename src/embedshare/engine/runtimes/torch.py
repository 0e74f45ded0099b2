"""PyTorch over packed batches: for CPUs without OpenVINO or with a model that does not convert, and Apple's
GPUs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import numpy as np
import torch

from embedshare.engine.runtimes import precision
from embedshare.engine.runtimes.embedder import rows_of
from embedshare.engine.runtimes.heads import DenseHead, Head
from embedshare.engine.runtimes.packing import Layout, pack
from embedshare.errors import OutOfMemory, UnsupportedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str) -> str:
    """The device that "auto" means here, or the named one.

    Raises UnsupportedModel if it does not exist.
    """
    if device.startswith("cuda"):
        count, index = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
        if index >= count:
            message = f"EMBEDDING_DEVICE is {device}; this machine has {count} CUDA devices"
            raise UnsupportedModel(message, setting="device")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UnsupportedModel("EMBEDDING_DEVICE is mps, which this machine does not have", setting="device")
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_dtype(dtype: str, device: str) -> str:
    """The precision that "auto" means on `device`: half if the hardware gains by it, else float32."""
    if dtype != "auto":
        return dtype
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        capable = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        return precision.faster_on_cpu(_products) if capable else "float32"
    return "float32"


def _products() -> precision.Products:
    dice = torch.Generator().manual_seed(0)  # its own: a fallback must not change a worker's random numbers
    rows = torch.randn(precision.ROWS, precision.INPUTS, generator=dice)
    weights = torch.randn(precision.OUTPUTS, precision.INPUTS, generator=dice)

    def product(dtype: torch.dtype) -> Callable[[], object]:
        return functools.partial(torch.nn.functional.linear, rows.to(dtype), weights.to(dtype))

    return precision.Products(product(torch.float32), product(torch.bfloat16))


def as_out_of_memory(error: BaseException, device: str, count: int) -> OutOfMemory | None:
    """The OutOfMemory for a batch of `count` sequences, if `error` means a lack of memory."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    lacking = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if lacking or "not enough memory" in str(error) or "out of memory" in str(error):
        return OutOfMemory(f"{device} has no memory for {count} sequences: {line}")
    return None


class TorchRuntime:
    """Runs the embedder in PyTorch, one batch of a lane at a time: a batch uses all cores."""

    name = "torch"
    max_batches_per_lane = 1
    max_batches = 2
    interactive_budget = 512
    bulk_budget = 2048

    def __init__(
        self, embedder: torch.nn.Module, device: str, layout: Layout, dtype: str, head: Head | None = None
    ) -> None:
        self.device = device
        self.dtype = dtype
        self._embedder = embedder
        self._layout = layout
        self._head = head or DenseHead()
        self.packs = not layout.one_text_a_row
        self._counting = threading.Lock()
        self.padding_tokens = 0
        self._embedder.transformer.to(DTYPES[dtype])

    def settle(self) -> None:
        """See base.Runtime."""

    def close(self) -> None:
        """See base.Runtime."""

    def run(self, sequences: list[list[int]]) -> np.ndarray:
        """See base.Runtime."""
        try:
            packed = pack(sequences, self._layout)
            rows = rows_of(self._embedder, self._head, sequences, packed, self.device)
            with self._counting:
                self.padding_tokens += packed.input_ids.size - sum(map(len, sequences))
            return rows
        except (RuntimeError, MemoryError) as error:
            failure = as_out_of_memory(error, self.device, len(sequences))
            if failure is None:
                raise
        raise failure
