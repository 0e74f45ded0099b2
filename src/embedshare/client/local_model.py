"""The local model that stands in for the server: loaded once, however many threads ask, and let go again."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from functools import partial
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

#: Pauses after tries in a row that could not load a local model.
RETRIES = Backoff(30.0, 240.0)
_ENDS = "the process ends, and loads no model any more"


class LocalModel:
    """At most one local model; `load(expected)` makes it, of the vector space that is expected.

    Safe to use from any number of threads.
    """

    def __init__(self, load: Callable[[ModelDescription | None], Local]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._loading: futures.Future[Local] | None = None
        self._failure: EmbedshareError | None = None
        self._failures, self._retry_at = 0, 0.0

    @property
    def failure(self) -> EmbedshareError | None:
        """Why it did not load a short while ago: it is not tried again before long."""
        return self._failure if time.monotonic() < self._retry_at else None

    def get(
        self, expected: ModelDescription | None, deadline: float, still_wanted: Callable[[], bool]
    ) -> Local | None:
        """The local model, loaded if need be, which goes on after the deadline; None where it is not wanted
        any more.

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
                raise DeadlineExceeded("the local model was not loaded in time; it goes on loading")
        return loading.result()

    def let_go(self) -> bool:
        """Hold it no longer; whether there was one. What kept one from loading is forgotten."""
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
                if self._loading is loading:  # else it was let go meanwhile
                    self._loading = None
                    self._failure, self._failures = failure, self._failures + 1
                    self._retry_at = time.monotonic() + RETRIES.pause_s(self._failures)
            loading.set_exception(failure)
        else:
            loading.set_result(local)
            logger.info("a local model is loaded, after {:.1f} s", time.monotonic() - started)


def load(settings: Settings, expected: ModelDescription | None) -> Local:
    """The model of a process that falls back, or that shares none; only such a process pays for its imports.

    The model is the one that the settings name, or, where that is not of the server's vector space, the one
    that the server of this machine told of: it was swapped to that. Raises MissingDependency on a base
    installation, and what `Engine.load` raises.
    """
    try:
        from embedshare import conversion
        from embedshare.models import memory_budget
        from embedshare.providers.local import Local
    except ImportError as error:
        raise MissingDependency(
            f"a local model needs more than this installation has ({error}): pip install 'embedshare[server]'"
        ) from None
    identity = expected.identity if expected is not None else None
    if not settings.client.use_ipc:
        return Local(conversion.load(settings, settings.model.device, identity))

    def in_turn(settings: Settings) -> Local:
        device = settings.client.fallback_device
        with _turn(settings):
            memory_budget.check_room(settings, device)
            return Local(conversion.load(settings, device, identity))

    try:
        return in_turn(settings)
    except (ModelMismatch, ModelNotFound) as error:
        if expected is None or not settings.server.on_loopback or expected.model_name == settings.model.name:
            raise
        told = dataclasses.replace(
            settings, model=dataclasses.replace(settings.model, name=expected.model_name)
        )
        try:
            return in_turn(told)
        except ModelNotFound:
            raise error from None


@contextmanager
def _turn(settings: Settings) -> Iterator[None]:
    """One process of a machine at a time: workers lose the server together, and the first that loads a model
    converts it for all of them."""
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
        logger.warning("Loading local models side by side, without a lock in {} ({})", folder, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _tell(failure: EmbedshareError) -> None:
    if _process_ends():
        logger.info("loading a local model stopped: {}", failure.message)
    else:
        logger.error("no local model can stand in: {}", failure.message)


def _process_ends() -> bool:
    """Whether the main thread has ended: libraries that load models then fail wherever they use executors."""
    return not threading.main_thread().is_alive()


def _failure(error: Exception) -> EmbedshareError:
    if isinstance(error, EmbedshareError):
        return error
    if _process_ends():
        return EmbedshareError(f"{_ENDS} ({error})")
    logger.opt(exception=error).error("the local model did not load")
    return EmbedshareError(f"the local model did not load: {type(error).__name__}: {error}")
