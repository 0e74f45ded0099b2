"""Loads the next model while the current one serves.

torch never enters the server for it: another process converts the model if needed (`conversion.py`), and the
server survives any crash there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from embedshare import conversion
from embedshare.calls import CallContext
from embedshare.errors import EngineFailed
from embedshare.models import memory_budget
from embedshare.models.canaries import Canaries
from embedshare.models.spec import ModelSpec
from embedshare.providers.base import LoadedProvider
from embedshare.providers.local import Devices, Local
from embedshare.providers.remote import Remote, Services
from embedshare.settings import Settings

#: Seconds that the canary texts of a space may take.
_CANARIES_S = 60.0


class Shared(NamedTuple):
    """What the models of a server share."""

    devices: Devices
    services: Services
    canaries: Canaries


def load(spec: ModelSpec, settings: Settings, check: Callable[[], None], shared: Shared) -> LoadedProvider:
    """The model of a specification, local or remote, of the vector space that it names.

    `check` raises once it is no longer wanted. Raises ModelMismatch, and what `load_local` and `Remote.load`
    raise.
    """
    if spec.is_local:
        provider: LoadedProvider = load_local(settings, check, shared.devices)
    else:
        provider = Remote.load(spec, shared.services, settings.server.max_texts)
    try:
        shared.canaries.check(spec, provider, CallContext(time.monotonic() + _CANARIES_S, may_wait=False))
        check()
    except BaseException:
        provider.close()
        raise
    return provider


def load_local(settings: Settings, check: Callable[[], None], devices: Devices) -> Local:
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
    return local
