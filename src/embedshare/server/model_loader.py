"""The model that is to take over, loaded beside the one that serves.

torch never enters the server for it: another process converts what is to be converted (`conversion.py`), and
the server outlives whatever happens there.
"""

from __future__ import annotations

from collections.abc import Callable

from embedshare import conversion
from embedshare.engine.engine import Engine
from embedshare.errors import EmbedshareError, EngineFailed
from embedshare.models import memory_budget
from embedshare.settings import Settings


def load(settings: Settings, check: Callable[[], None]) -> Engine:
    """The model that the settings name, warmed up, where there is room for it on its device.

    `check` raises where it is not wanted any more. Raises OutOfMemory, what `Engine.load` raises, and
    EngineFailed where the process that converts is killed or cannot work.
    """
    memory_budget.check_room(settings, settings.model.device)
    try:
        ready = conversion.prepared(settings, settings.model.device, check=check)
    except OSError as error:
        raise EngineFailed(f"{settings.model.name} cannot be converted: {error}") from None
    check()
    try:
        engine = Engine.load(ready, ready.model.device)
        engine.settle()
    except Exception as error:
        raise conversion.failure(settings, error) from None
    try:
        check()
    except EmbedshareError:
        engine.close()
        raise
    return engine
