"""Loads the next model while the current one serves.

torch never enters the server for it: another process converts the model if needed (`conversion.py`), and the
server survives any crash there.
"""

from __future__ import annotations

from collections.abc import Callable

from embedshare import conversion
from embedshare.errors import EmbedshareError, EngineFailed
from embedshare.models import memory_budget
from embedshare.providers.local import Devices, Local
from embedshare.settings import Settings


def load(settings: Settings, check: Callable[[], None], devices: Devices) -> Local:
    """The model that the settings name, warmed up, if there is room for it on its device.

    `check` raises once it is no longer wanted. Raises OutOfMemory, what `Local.load` raises, and
    EngineFailed if the converting process is killed or cannot start.
    """
    memory_budget.check_room(settings, settings.model.device)
    try:
        ready = conversion.prepared(settings, settings.model.device, check=check)
    except OSError as error:
        raise EngineFailed(f"{settings.model.name} cannot be converted: {error}") from None
    check()
    try:
        local = Local.load(ready, ready.model.device, devices=devices)
    except Exception as error:
        raise conversion.failure(settings, error) from None
    try:
        check()
    except EmbedshareError:
        local.close()
        raise
    return local
