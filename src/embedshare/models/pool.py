"""The served model, and its replacement by another.

The new model is loaded next to the old one and takes over between two calls. A call ends with the model that
it began with, and the old model is unloaded after the last of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from loguru import logger

from embedshare.engine import loading, weights
from embedshare.errors import EmbedshareError, ModelSwapped, SwapRefused
from embedshare.identity import ModelDescription, identity_of
from embedshare.providers.local import Local, release_memory
from embedshare.settings import Settings

#: Watches a model until the event is set, in a thread of its own.
Watch = Callable[[Local, threading.Event], None]


class LoadedModel:
    """A model, its settings, and the number of its calls in flight, of which a `with` block ends one."""

    def __init__(self, local: Local, settings: Settings, watch: Watch, lock: threading.Lock) -> None:
        """`lock`: the pool's."""
        self._lock = lock
        self.settings = settings
        self.description = local.description
        self.provider = local
        self.calls = 0
        self.is_replaced = False
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=watch, args=(local, self._ended), name="vitals", daemon=True)
        self._watcher.start()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.calls -= 1
            is_over = self.is_replaced and not self.calls
        if is_over:
            self.release()

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


class ModelPool:
    """Holds the model that answers calls, and during a swap the old one; thread-safe.

    `note(model_name)` is called for each model that has taken over.
    """

    def __init__(self, local: Local, settings: Settings, watch: Watch, note: Callable[[str], None]) -> None:
        self._watch = watch
        self._note = note
        self._lock = threading.Lock()
        self._current = LoadedModel(local, settings, watch, self._lock)
        self._swapping = threading.Lock()
        self.swaps = self.failed_swaps = 0

    @property
    def description(self) -> ModelDescription:
        """The served model."""
        return self._current.description

    @property
    def settings(self) -> Settings:
        """The settings of the served model."""
        return self._current.settings

    @property
    def calls(self) -> int:
        """The served model's calls in flight."""
        return self._current.calls

    def lease(self, expected: LoadedModel | None = None) -> LoadedModel:
        """The model that answers a call; it stays loaded until the end of the `with` block over it.

        `expected`: the model of the caller's connection. Raises ModelSwapped if it is no longer served.
        """
        with self._lock:
            leased = self._current
            if expected is not None and expected is not leased:
                raise ModelSwapped(
                    f"{expected.description.model_name} is no longer served, but "
                    f"{leased.description.model_name}"
                )
            leased.calls += 1
            return leased

    def swap(self, wanted: Settings, load: Callable[[], Local]) -> ModelDescription:
        """Replace the served model by the one that `wanted` names, on its device, which `load()` loads.

        If that model serves there already, only the batch size follows `wanted`, at once. Raises SwapRefused
        if another swap is under way, and the errors of finding and loading the model; then nothing has
        changed.
        """
        if not self._swapping.acquire(blocking=False):
            raise SwapRefused("another swap is under way; retry when it is done")
        try:
            held, before = self._current, self._current.description
            if _serves(held, wanted):
                held.provider.scheduler.limit_batches(wanted.model.max_batch_size)
                held.settings = wanted
                return before
            began = time.monotonic()
            logger.info("Loading {} for a swap ({} keeps serving)", wanted.model.name, _shown(before))
            new = LoadedModel(load(), wanted, self._watch, self._lock)
            with self._lock:
                old, self._current = self._current, new
                self.swaps += 1
                old.is_replaced, is_over = True, not old.calls
            names = _shown(before), _shown(new.description)
            logger.info("Swapped {} for {} in {:.1f} s", *names, time.monotonic() - began)
            self._note(wanted.model.name)
            if is_over:
                old.release()
            return new.description
        except EmbedshareError as error:
            serving = self._current.description.model_name
            self.failed_swaps += 1
            logger.error(
                "Could not swap to {}; {} keeps serving: {}", wanted.model.name, serving, error.message
            )
            release_memory()
            raise
        finally:
            self._swapping.release()

    def close(self) -> None:
        """Stop watching the model: the server stops."""
        self._current.stop_watching()


def _serves(held: LoadedModel, wanted: Settings) -> bool:
    """Whether the served model is the wanted one, on the wanted device."""
    if not loading.same_device(held.settings.model.device, wanted.model.device):
        return False
    return identity_of(weights.find(wanted.model.name, wanted.model.cache_dir)) == held.description.identity


def _shown(described: ModelDescription) -> str:
    return f"{described.model_name} ({described.identity[:12]}) on {described.device}"
