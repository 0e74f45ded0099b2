"""PyTorch: GPUs, and CPUs without OpenVINO or with a model that does not convert."""

from __future__ import annotations

import numpy as np
import torch
from loguru import logger
from sentence_transformers import SentenceTransformer

from embedshare.engine.runtimes.embedder import Embedder, plain_forward
from embedshare.engine.runtimes.packing import Layout, pack
from embedshare.errors import OutOfMemory, UnsupportedModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str) -> str:
    """The device that "auto" means here, or the one that is named.

    Raises UnsupportedModel where it is not there.
    """
    if device.startswith("cuda"):
        count, index = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
        if index >= count:
            raise UnsupportedModel(f"EMBEDDING_DEVICE is {device}; this machine has {count} CUDA devices")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UnsupportedModel("EMBEDDING_DEVICE is mps, which this machine does not have")
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_dtype(dtype: str, device: str) -> str:
    """The precision that "auto" means on `device`: half where the hardware computes in it, else float32."""
    if dtype != "auto":
        return dtype
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"
    return "float32"


class TorchRuntime:
    """Runs the model in PyTorch.

    One batch at a time: a batch uses all cores, or all of the GPU.
    """

    name = "torch"
    parallel = 1

    def __init__(
        self, model: SentenceTransformer, embedder: Embedder, layout: Layout | None, dtype: str
    ) -> None:
        self.device = str(model.device)
        self.dtype = dtype
        on_gpu = self.device.startswith("cuda")
        self.interactive_budget = 4096 if on_gpu else 512
        self.bulk_budget = 16_384 if on_gpu else 2048
        self._model = model
        self._embedder = embedder
        self._layout = layout
        if self._layout is None:
            logger.info("the model does not take packed batches; they are padded instead")
        self._embedder.transformer.to(_DTYPES[dtype])
        if self._layout is None:
            self._embedder.rest.to(_DTYPES[dtype])

    def run(self, sequences: list[list[int]]) -> np.ndarray:
        """See interface.Runtime."""
        try:
            if self._layout is None:
                return plain_forward(self._model, sequences)
            arrays = [
                torch.from_numpy(array).to(self._model.device) for array in pack(sequences, self._layout)
            ]
            with torch.inference_mode():
                vectors: np.ndarray = self._embedder(*arrays).float().cpu().numpy()
            return vectors
        except (torch.OutOfMemoryError, MemoryError) as error:
            failure = self._out_of_memory(len(sequences), error)
        except RuntimeError as error:
            if "not enough memory" not in str(error) and "out of memory" not in str(error):
                raise
            failure = self._out_of_memory(len(sequences), error)
        # Outside the handler, so that the error's frames no longer hold the batch's memory.
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        raise failure

    def _out_of_memory(self, count: int, error: Exception) -> OutOfMemory:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        return OutOfMemory(f"{self.device} has no memory for {count} sequences: {line}")
