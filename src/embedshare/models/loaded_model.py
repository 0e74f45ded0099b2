"""A model in memory, and the calls that use it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from loguru import logger

from embedshare.providers.base import LoadedProvider
from embedshare.providers.local import release_memory
from embedshare.settings import Settings

#: Watches a model until the event is set, in a thread of its own.
Watch = Callable[[LoadedProvider, threading.Event], None]


class LoadedModel:
    """A model, its settings, and the number of its calls in flight, of which a `with` block ends one.

    `lock` is the pool's; `on_idle` is called without it after the last call has ended.
    """

    def __init__(
        self,
        provider: LoadedProvider,
        settings: Settings,
        watch: Watch,
        lock: threading.Lock,
        on_idle: Callable[[LoadedModel], None],
    ) -> None:
        self._lock = lock
        self._on_idle = on_idle
        self.settings = settings
        self.description = provider.description
        self.provider = provider
        self.calls = 0
        self.total = 0
        """All calls since it was loaded."""
        self.loaded_at = self.used_at = time.monotonic()
        self.is_retired = False
        """It answers no further calls, and is unloaded after the last one."""
        self._ended = threading.Event()
        self._watcher = threading.Thread(
            target=watch, args=(provider, self._ended), name="vitals", daemon=True
        )
        self._watcher.start()

    def enter(self, is_check: bool) -> LoadedModel:
        """A call begins. Called with the lock held."""
        self.calls += 1
        if not is_check:
            self.total += 1
            self.used_at = time.monotonic()
        return self

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.calls -= 1
            is_idle = not self.calls
        if is_idle:
            self._on_idle(self)

    def stop_watching(self) -> None:
        self._ended.set()

    def release(self) -> None:
        """Unload the model, which no call uses any more."""
        self.stop_watching()
        self._watcher.join()
        self.provider.close()
        del self.provider  # a holder of this object does not keep the model's memory
        release_memory()
        logger.info("Unloaded {} ({})", self.description.model_name, self.description.identity[:12])
