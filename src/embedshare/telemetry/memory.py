"""The memory of processes and GPUs; None if it is unknown."""

from __future__ import annotations

import os
import sys


def of_process(pid: int | None = None) -> int | None:
    """Bytes that a process of this machine, or this one, has in memory."""
    try:
        import psutil  # missing in a base installation
    except ImportError:
        return None
    try:
        return int(psutil.Process(pid or os.getpid()).memory_info().rss)
    except psutil.Error:
        return None


def of_gpu() -> int | None:
    """Bytes that this process has taken from its GPUs; None if it uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return sum(int(torch.cuda.memory_reserved(number)) for number in range(torch.cuda.device_count()))


def megabytes(size: int | None) -> float | None:
    """Bytes in the form of the stats."""
    return None if size is None else round(size / 1e6, 1)
