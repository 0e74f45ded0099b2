"""Checks whether the machine, its container or a GPU has room for one more model."""

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


def check_room(settings: Settings, device: str) -> None:
    """Raise OutOfMemory if the machine, its container or the GPU has no room for one more model."""
    folder = weights.find(settings.model.name, settings.model.cache_dir)
    needed = _COPIES * sum(file.stat().st_size for file in _weights_in(folder)) + _OVERHEAD_BYTES
    for where, free in _free(device):
        if free < needed:
            raise OutOfMemory(
                f"one more model needs about {needed >> 20:,} MB, and {where} has {free >> 20:,} MB free"
            )


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
    if device.startswith("cuda"):
        import torch  # torch runs the model there

        if torch.cuda.is_available():
            yield device, torch.cuda.mem_get_info(device)[0]
