"""The local model of a fallback: loaded once for all threads, and unloaded again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from embedshare import folders, threads
from embedshare.backoff import Backoff
from embedshare.errors import (
    DeadlineExceeded,
    EmbedshareError,
    MissingDependency,
    ModelMismatch,
    ModelNotFound,
)
from embedshare.identity import ModelDescription
from embedshare.settings import Settings

if TYPE_CHECKING:
    from embedshare.providers.local import Local

#: Pauses after failed loads in a row.
RETRIES = Backoff(30.0, 240.0)
_ENDS = "the process is exiting and loads no model"


class LocalModel:
    """At most one local model; `load(expected)` makes it, of the expected vector space. Thread-safe."""

    def __init__(self, load: Callable[[ModelDescription | None], Local]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._loading: futures.Future[Local] | None = None
        self._failure: EmbedshareError | None = None
        self._failures, self._retry_at = 0, 0.0

    @property
    def failure(self) -> EmbedshareError | None:
        """The reason why it did not load lately; the next try waits for a while."""
        return self._failure if time.monotonic() < self._retry_at else None

    def get(
        self, expected: ModelDescription | None, deadline: float, still_wanted: Callable[[], bool]
    ) -> Local | None:
        """The local model, loaded if needed; loading continues after the deadline. None if it is no longer
        wanted.

        Raises DeadlineExceeded, and the EmbedshareError that keeps it from loading.
        """
        here: Callable[[], None] | None = None
        with self._lock:
            failure = self.failure
            if failure is not None:
                raise failure
            if self._loading is None:
                self._loading = futures.Future()
                load = partial(self._fulfil, self._loading, expected)
                # Not a daemon: a process must not end while OpenVINO compiles, which would abort it.
                if threads.start(load, "embedshare-load", daemon=False) is None:
                    here = load
            loading = self._loading
        if here is not None:
            here()
        while not futures.wait([loading], timeout=0.05).done:
            if not still_wanted():
                return None
            if time.monotonic() >= deadline:
                raise DeadlineExceeded("the local model did not load in time; loading continues")
        return loading.result()

    def let_go(self) -> bool:
        """Unload it, and forget a failed load; whether there was a model."""
        with self._lock:
            there, self._loading = self._loading is not None, None
            self._failures, self._retry_at = 0, 0.0
        return there

    def _fulfil(self, loading: futures.Future[Local], expected: ModelDescription | None) -> None:
        started = time.monotonic()
        try:
            local = self._load(expected)
        except Exception as error:
            failure = _failure(error)
            _tell(failure)
            with self._lock:
                if self._loading is loading:  # else it was unloaded meanwhile
                    self._loading = None
                    self._failure, self._failures = failure, self._failures + 1
                    self._retry_at = time.monotonic() + RETRIES.pause_s(self._failures)
            loading.set_exception(failure)
        else:
            loading.set_result(local)
            logger.info("Loaded a local model in {:.1f} s", time.monotonic() - started)


def load(settings: Settings, expected: ModelDescription | None, name: str = "") -> Local:
    """The model of a process that falls back or shares none; only such a process pays for its imports.

    `name`: see EmbeddingClient. The model is the settings' of that name, or, if it is not of the server's
    vector space, the one that this machine's server had last. Raises MissingDependency on a base
    installation, and what `Local.load` raises.
    """
    try:
        from embedshare import conversion
        from embedshare.models import memory_budget
    except ImportError as error:
        raise MissingDependency(
            f"a local model needs a package that is not installed ({error}): pip install 'embedshare[server]'"
        ) from None
    settings = _of_model(settings, name, expected)
    identity = expected.identity if expected is not None else None
    if not settings.client.use_ipc:
        return conversion.load(settings, settings.model.device, identity)

    def in_turn(settings: Settings) -> Local:
        device = settings.client.fallback_device
        with _turn(settings):
            memory_budget.check_room(settings, device)
            return conversion.load(settings, device, identity)

    try:
        return in_turn(settings)
    except (ModelMismatch, ModelNotFound) as error:
        if expected is None or not settings.server.on_loopback or expected.model_name == settings.model.name:
            raise
        try:
            return in_turn(_as_described(settings, expected))
        except ModelNotFound:
            raise error from None


def _of_model(settings: Settings, name: str, expected: ModelDescription | None) -> Settings:
    """The settings of the model that callers name `name`: those of EMBEDDING_MODELS_FILE, if there is one.

    Without it the model that the server had under the name. Raises InvalidModels, UnknownModel.
    """
    from embedshare.models.registry import Registry
    from embedshare.models.spec import ModelSpec

    if settings.model.models_file is not None:
        from embedshare.models.sources import file

        spec = file.read(Path(settings.model.models_file)).find(name)
        if not spec.is_local:
            raise ModelNotFound(f"{spec.id} is a model of {spec.provider}: no process here can load it")
        return spec.settings(settings)
    if expected is not None and expected.device == "remote":
        name = expected.model_name
        raise ModelNotFound(f"{name} is a model of {expected.runtime}: no process here can load it")
    if name and expected is not None:
        return _as_described(settings, expected)
    Registry([ModelSpec.of_settings(settings)]).find(name)
    return settings


def _as_described(settings: Settings, expected: ModelDescription) -> Settings:
    """The settings of the model that the server described, served as one of the same family."""
    return settings.with_values(
        {"EMBEDDING_MODEL_NAME": expected.model_name, "EMBEDDING_FAMILY": expected.family}
    )


@contextmanager
def _turn(settings: Settings) -> Iterator[None]:
    """One process of a machine loads at a time: workers lose the server together, and the first that loads a
    model converts it for all of them."""
    from filelock import FileLock, Timeout  # a base install does not have it

    folder = folders.cache(settings)
    lock = FileLock(folder / "local-model.lock", mode=0o600)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0.5)
            except Timeout:
                if _process_ends():
                    raise EmbedshareError(_ENDS) from None
    except OSError as error:
        logger.warning(
            "Loading local models without waiting for other processes (no lock in {}: {})", folder, error
        )
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _tell(failure: EmbedshareError) -> None:
    if _process_ends():
        logger.info("Stopped loading a local model ({})", failure.message)
    else:
        logger.error("Could not load a local model: {}", failure.message)


def _process_ends() -> bool:
    """Whether the main thread has ended: libraries that load models then fail wherever they use executors."""
    return not threading.main_thread().is_alive()


def _failure(error: Exception) -> EmbedshareError:
    if isinstance(error, EmbedshareError):
        return error
    if _process_ends():
        return EmbedshareError(f"{_ENDS} ({error})")
    logger.opt(exception=error).error("Failed to load the local model")
    return EmbedshareError(f"the local model did not load: {type(error).__name__}: {error}")
