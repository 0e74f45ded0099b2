"""The memory that models may take on this machine, in its container, or on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from embedshare import platforms
from embedshare.engine import weights
from embedshare.errors import OutOfMemory
from embedshare.settings import Settings

#: A model's memory besides its weights, with its libraries (measured: 224 MB with the 91 MB of
#: all-MiniLM-L6-v2); its conversion takes the weights once more.
_OVERHEAD_BYTES = 250 << 20
_COPIES = 2
#: The share of a machine's memory that models leave free without EMBEDDING_MAX_MODEL_BYTES.
_RESERVE = 0.1


class MemoryBudget:
    """Bytes for all models together: `limit_bytes`, or if that is 0 what the device has, less a reserve."""

    def __init__(self, limit_bytes: int, device: str) -> None:
        self._limit_bytes = limit_bytes
        self._device = device

    def left(self, used_bytes: int, reserved_bytes: int) -> int:
        """Bytes for one more model. `used_bytes` are taken by loaded ones, `reserved_bytes` not yet taken by
        models that are being loaded."""
        if self._limit_bytes:
            return self._limit_bytes - used_bytes - reserved_bytes
        reserve = int(_RESERVE * psutil.virtual_memory().total)
        return min(free for _, free in _free(self._device)) - reserve - reserved_bytes


def estimate(settings: Settings) -> int:
    """The bytes that a model takes which was never loaded here. Raises ModelNotFound, WeightsCorrupted."""
    return _weights_bytes(settings) + _OVERHEAD_BYTES


def check_room(settings: Settings, device: str) -> None:
    """Raise OutOfMemory if the machine, its container or the GPU has no room for one more model."""
    needed = _COPIES * _weights_bytes(settings) + _OVERHEAD_BYTES
    for where, free in _free(device):
        if free < needed:
            raise OutOfMemory(
                f"one more model needs about {needed >> 20:,} MB, and {where} has {free >> 20:,} MB free"
            )


def _weights_bytes(settings: Settings) -> int:
    folder = weights.find(settings.model.name, settings.model.cache_dir)
    return sum(file.stat().st_size for file in _weights_in(folder))


def _weights_in(folder: Path) -> Iterator[Path]:
    """Every part of the model once: a folder may hold the same weights in several formats."""
    for suffix in (".safetensors", ".bin"):
        files = [file for file in folder.rglob(f"*{suffix}") if file.is_file()]
        if files:
            yield from files
            return


def _free(device: str) -> Iterator[tuple[str, int]]:
    """Bytes available to a model, by place."""
    limited = platforms.container_memory_left()
    available = psutil.virtual_memory().available
    yield "the machine", available if limited is None else min(available, limited)
    if device.startswith("cuda") or (device == "auto" and platforms.may_have_gpu()):
        import torch  # torch runs the model there

        if torch.cuda.is_available():
            where = device if device.startswith("cuda") else "cuda"
            yield where, torch.cuda.mem_get_info(where)[0]
