"""A local model beside those of other workers, which all lose the server at the same moment.

They load one after another, so that the first converts the model for all of them, and each only where there
is room for it: what one worker's model would take from the machine is worth less than the machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from loguru import logger

from embedshare import folders, platforms
from embedshare.engine import weights
from embedshare.engine.engine import Engine
from embedshare.errors import EmbedshareError, OutOfMemory
from embedshare.settings import Settings

#: What a model needs besides its weights, with the libraries that run it (measured: 224 MB in all with
#: all-MiniLM-L6-v2's 91 MB), and while it is converted the weights once more.
_OVERHEAD_BYTES = 250 << 20
_COPIES = 2


def load(
    settings: Settings,
    device: str,
    expected_identity: str | None,
    load_engine: Callable[[Settings, str, str | None], Engine] = Engine.load,
) -> Engine:
    """`load_engine`, when it is this process's turn.

    Raises what that raises, and OutOfMemory where the machine or the GPU has no room for one more model.
    """
    with _turn(settings):
        check_room(settings, device)
        return load_engine(settings, device, expected_identity)


@contextmanager
def _turn(settings: Settings) -> Iterator[None]:
    folder = folders.cache(settings)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder / "local-model.lock", mode=0o600)
        _acquire(lock)
    except OSError as error:
        logger.warning("local models load beside one another, for want of a lock in {}: {}", folder, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock) -> None:
    """Wait for a turn, for as long as the process is not about to end."""
    while True:
        try:
            lock.acquire(timeout=0.5)
            return
        except Timeout:
            if not threading.main_thread().is_alive():
                raise EmbedshareError("the process ends, and loads no model any more") from None


def check_room(settings: Settings, device: str) -> None:
    """Raise OutOfMemory where the machine, its container or the GPU has no room for one more model."""
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
    """Bytes that a model could take, by where."""
    limited = platforms.container_memory_left()
    available = psutil.virtual_memory().available
    yield "the machine", available if limited is None else min(available, limited)
    if device.startswith("cuda"):
        import torch  # which runs the model there

        if torch.cuda.is_available():
            yield device, torch.cuda.mem_get_info(device)[0]
