"""The models that answer calls: loaded when they are asked for, unloaded when idle or for room, and replaced.

A new model is loaded next to the old one and takes over between two calls. A call ends with the model that
it began with, and a model is unloaded after the last of its calls. Waiting for one model's load holds up no
call of another.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any

import msgspec
from loguru import logger

from embedshare import threads
from embedshare.backoff import Backoff, told_s
from embedshare.calls import UNBOUNDED, CallContext
from embedshare.engine import families, loading, weights
from embedshare.errors import (
    DeadlineExceeded,
    EmbedshareError,
    EngineFailed,
    ModelMismatch,
    ModelSwapped,
    OutOfMemory,
    Overloaded,
    SwapRefused,
)
from embedshare.identity import ModelDescription
from embedshare.models import eviction, memory_budget
from embedshare.models.eviction import Occupant
from embedshare.models.loaded_model import LoadedModel, Watch
from embedshare.models.memory_budget import MemoryBudget
from embedshare.models.registry import Registry
from embedshare.models.spec import ModelSpec
from embedshare.providers.base import LoadedProvider
from embedshare.providers.local import Local, release_memory
from embedshare.settings import Settings
from embedshare.telemetry import tracing

#: Loads the model of a specification by its settings; the function raises once it is no longer wanted.
Load = Callable[[ModelSpec, Settings, Callable[[], None]], LoadedProvider]
#: Pauses after failed loads of a model in a row: its callers get the last error meanwhile.
RETRIES = Backoff(30.0, 240.0)
#: The same for a remote model, which loads nothing and fails with its service.
REMOTE_RETRIES = Backoff(1.0, 60.0)
#: Seconds after which a load goes on although one before it has not ended.
TURN_S = 60.0
#: Seconds that a load waits for a busy model to become idle, and seconds between two looks.
ROOM_WAIT_S, ROOM_LOOK_S = 10.0, 0.02
#: Seconds between two looks for models whose keep-alive time is over.
KEEPER_S = 0.5
#: Seconds that a loaded model waits for its first call, whatever its keep-alive time.
_FIRST_CALL_S = 5.0


class State(str, enum.Enum):
    """What a model's place in the pool holds."""

    STANDBY = "standby"  # nothing; the next call loads it
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"  # its last calls are being answered
    FAILED = "failed"  # it did not load lately


class _Slot:
    """A model's place in the pool. Its attributes change with the pool's lock held."""

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        self.spec = spec
        self.settings = settings
        self.loaded: LoadedModel | None = None
        self.description: ModelDescription | None = None
        """The model as it was loaded last; known after an eviction too."""
        self.bytes = 0
        """The memory that it took when it was loaded last."""
        self.loading: futures.Future[LoadedModel] | None = None
        self.loading_since = 0.0
        self.reserved_bytes = 0
        self.leaving = 0
        self.failure: EmbedshareError | None = None
        self.failures, self.retry_at = 0, 0.0
        self.loads = self.failovers = 0
        self.calls_before = 0
        self.pinned, self.keep_alive_s = spec.pinned, spec.keep_alive_s

    @property
    def state(self) -> State:
        if self.loaded is not None:
            return State.READY
        if self.loading is not None:
            return State.LOADING
        if self.leaving:
            return State.UNLOADING
        return State.STANDBY if self.failure is None else State.FAILED


class ModelPool:
    """Holds the models of a registry; thread-safe. `base`: the settings that specifications override.

    `note(name)` is called for each model that has taken over in a swap.
    """

    def __init__(
        self,
        registry: Registry,
        base: Settings,
        watch: Watch,
        load: Load,
        note: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._base = base
        self._watch = watch
        self._load = load
        self._note = note
        self._lock = threading.Lock()
        self._registry = registry
        self._slots = {spec.id: _Slot(spec, spec.settings(base)) for spec in registry}
        self._swapping = threading.Lock()
        self._turn = threading.RLock()
        """Held by the load that makes room, and by one of a converted model to its end."""
        self._closed = threading.Event()
        self.swaps = self.failed_swaps = 0
        self.evictions = 0
        threading.Thread(target=self._keep, name="keep-alive", daemon=True).start()

    @property
    def calls(self) -> int:
        """Calls in flight, of all models."""
        return sum(one.calls for one in self._loaded())

    def settings(self, name: str = "") -> Settings:
        """The settings of a model. Raises UnknownModel."""
        return self._slot(name).settings

    def spec(self, name: str = "") -> ModelSpec:
        """Raises UnknownModel."""
        return self._slot(name).spec

    def describe(self, name: str = "") -> ModelDescription | None:
        """A model as it was loaded last; nothing is loaded. Raises UnknownModel."""
        return self._slot(name).description

    def state(self, name: str = "") -> State:
        """Raises UnknownModel."""
        return self._slot(name).state

    def count_failover(self, name: str) -> None:
        """Another model has answered a call of this one."""
        with self._lock:
            self._slot(name).failovers += 1

    def check(self, name: str, identity: str | None) -> None:
        """Raise ModelSwapped if a model is known to be of another vector space; nothing is loaded."""
        _check_identity(self._slot(name), identity)

    def install(self, local: LoadedProvider, settings: Settings) -> None:
        """The default model, which was loaded already."""
        slot = self._slot("")
        with self._lock:
            slot.settings = settings
            self._put(slot, local)

    def lease(
        self,
        name: str = "",
        identity: str | None = None,
        context: CallContext = UNBOUNDED,
        patience_s: float = float("inf"),
    ) -> LoadedModel:
        """The model of this name; it stays loaded until the end of the `with` block over it.

        Loads it first if needed, once for all who wait; the load goes on after a caller's deadline, and after
        `patience_s` seconds of it this caller waits no longer. Raises UnknownModel; ModelSwapped if it is not
        of the vector space `identity`; Overloaded if there is no room or a health check asks for a model that
        is not loaded; DeadlineExceeded; and what loading raises.
        """
        slot = self._slot(name)
        while True:
            with self._lock:
                _check_identity(slot, identity)
                if slot.loaded is not None:
                    return slot.loaded.enter(context.is_check)
                if context.is_check:
                    message = f"{slot.spec.id} is not loaded, and a health check loads no model"
                    raise Overloaded(message, retry_after_s=1.0)
                pending = self._begin_load(slot)
                latest = slot.loading_since + patience_s
            with tracing.span("load"):
                _wait(pending, context, slot.spec.id, latest)
            slot = self._slot(name)  # the registry may have changed

    def load(self, name: str, context: CallContext = UNBOUNDED) -> None:
        """Load a model unless it is loaded. Raises what `lease` raises."""
        with self.lease(name, None, context):
            pass

    def unload(self, name: str) -> bool:
        """Unload a model after its last call; whether it was loaded. The next call loads it again."""
        slot = self._slot(name)
        with self._lock:
            there = self._retired(slot)
        if there is not None and not there.calls:
            self._release(slot, there)
        return there is not None

    def pin(self, name: str, pinned: bool) -> None:
        """Keep a model loaded whatever others need, or no longer."""
        self._slot(name).pinned = pinned

    def keep_alive(self, name: str, seconds: float) -> None:
        """Unload a model after this time without a call, in place of its own; -1 is never."""
        self._slot(name).keep_alive_s = seconds

    def swap(self, name: str, wanted: Settings, check: Callable[[], None]) -> ModelDescription:
        """Replace a model by the one that `wanted` names, on its device.

        If that model serves there already, only the batch size follows `wanted`, at once. Raises
        UnknownModel, SwapRefused if another swap is under way, and the errors of finding and loading the
        model; then nothing has changed.
        """
        slot = self._slot(name)
        if not slot.spec.is_local:
            raise SwapRefused(f"{slot.spec.id} is a remote model; change it in the file of models")
        if not self._swapping.acquire(blocking=False):
            raise SwapRefused("another swap is under way; retry when it is done")
        try:
            held = slot.loaded
            if held is not None and isinstance(held.provider, Local) and _serves(held, wanted):
                held.provider.scheduler.limit_batches(wanted.model.max_batch_size)
                held.settings = slot.settings = wanted
                return held.description
            began = time.monotonic()
            before = slot.spec.id if slot.description is None else _shown(slot.description)
            logger.info("Loading {} for a swap ({} keeps serving)", wanted.model.name, before)
            self._make_room(slot, wanted)
            local = self._loaded_as(slot.spec, wanted, check)
            with self._lock:
                old = self._retired(slot)
                slot.settings = wanted
                self._put(slot, local)
                self.swaps += 1
            after = _shown(local.description)
            logger.info("Swapped {} for {} in {:.1f} s", before, after, time.monotonic() - began)
            self._note(wanted.model.name)
            if old is not None and not old.calls:
                self._release(slot, old)
            return local.description
        except EmbedshareError as error:
            self.failed_swaps += 1
            logger.error(
                "Could not swap to {}; {} keeps serving: {}", wanted.model.name, slot.spec.id, error.message
            )
            release_memory()
            raise
        finally:
            slot.reserved_bytes = 0
            self._swapping.release()

    def update(self, registry: Registry, check: Callable[[], None] = lambda: None) -> None:
        """Take another registry over, all or nothing: new models appear, gone ones end with their last call,
        and changed ones that are loaded are replaced as in a swap.

        Raises SwapRefused while a swap is under way, and the errors of finding and loading a model; then
        nothing has changed.
        """
        if not self._swapping.acquire(blocking=False):
            raise SwapRefused("a swap is under way; retry when it is done")
        ready: dict[str, LoadedProvider] = {}
        try:
            slots = {spec.id: self._next_slot(spec) for spec in registry}
            for spec_id, slot in slots.items():
                before = self._slots.get(spec_id)
                if slot is before:
                    continue
                if slot.spec.is_local:
                    weights.find(slot.settings.model.name, slot.settings.model.cache_dir)
                if slot.spec.preload or (before is not None and before.loaded is not None):
                    loaded_bytes = sum(one.model_bytes or 0 for one in ready.values())
                    if slot.spec.is_local:
                        self._make_room(slot, slot.settings, loaded_bytes)
                    ready[spec_id] = self._loaded_as(slot.spec, slot.settings, check)
        except BaseException:
            for local in ready.values():
                local.close()
            release_memory()
            raise
        else:
            self._take_over(registry, slots, ready)
        finally:
            self._swapping.release()

    def entries(self) -> list[dict[str, Any]]:
        """The models in the order of the registry, as the query "models" has them; nothing is loaded."""
        now = time.monotonic()
        with self._lock:
            return [self._entry(self._slots[spec.id], now) for spec in self._registry]

    def entry(self, name: str) -> dict[str, Any]:
        """One of them. Raises UnknownModel."""
        with self._lock:
            return self._entry(self._slot(name), time.monotonic())

    def providers(self) -> list[tuple[str, LoadedProvider]]:
        """The loaded models by their ids."""
        with self._lock:
            return [(slot.spec.id, slot.loaded.provider) for slot in self._slots.values() if slot.loaded]

    def close(self) -> None:
        """Stop watching the models: the server stops."""
        self._closed.set()
        for one in self._loaded():
            one.stop_watching()

    def _slot(self, name: str) -> _Slot:
        return self._slots[self._registry.find(name).id]

    def _loaded(self) -> list[LoadedModel]:
        return [slot.loaded for slot in list(self._slots.values()) if slot.loaded is not None]

    def _put(self, slot: _Slot, local: LoadedProvider) -> LoadedModel:
        """A loaded model takes its place. Called with the lock held."""
        slot.loaded = LoadedModel(local, slot.settings, self._watch, self._lock, partial(self._idle, slot))
        slot.description, slot.failure, slot.failures = local.description, None, 0
        slot.bytes = max(slot.bytes, local.model_bytes or 0)
        slot.reserved_bytes = 0
        slot.loads += 1
        return slot.loaded

    def _retired(self, slot: _Slot) -> LoadedModel | None:
        """The slot's model, which answers no further calls. Called with the lock held."""
        there, slot.loaded = slot.loaded, None
        if there is not None:
            there.is_retired = True
            slot.leaving += 1
            slot.calls_before += there.total
        return there

    def _release(self, slot: _Slot, gone: LoadedModel) -> None:
        """Unload a retired model that no call uses, in a thread that the process waits for at its end."""
        work = partial(self._unload, slot, gone)
        if threads.start(work, "unload", daemon=False) is None:
            work()

    def _unload(self, slot: _Slot, gone: LoadedModel) -> None:
        gone.release()
        with self._lock:
            slot.leaving -= 1

    def _idle(self, slot: _Slot, loaded: LoadedModel) -> None:
        """The last call of a model has ended."""
        with self._lock:
            if loaded.calls:
                return
            goes_at_once = slot.keep_alive_s == 0 and loaded.total and not slot.pinned
            if not loaded.is_retired and not goes_at_once:
                return
            if not loaded.is_retired:
                self._retired(slot)
        self._release(slot, loaded)

    def _begin_load(self, slot: _Slot) -> futures.Future[LoadedModel]:
        """The load under way; it is started if needed. Called with the lock held."""
        if slot.loading is not None:
            return slot.loading
        left_s = slot.retry_at - time.monotonic()
        if slot.failure is not None and left_s > 0:
            failure = copy(slot.failure)
            failure.fields = {**failure.fields, "retry_after_s": told_s(left_s)}
            raise failure
        slot.loading, slot.loading_since = futures.Future(), time.monotonic()
        work = partial(self._fulfil, slot, slot.loading)
        # Not a daemon: a process must not end while OpenVINO compiles, which would abort it.
        if self._closed.is_set() or threads.start(work, f"load {slot.spec.id}", daemon=False) is None:
            slot.loading = None
            raise EngineFailed("the model server is stopping and loads no model")
        return slot.loading

    def _fulfil(self, slot: _Slot, pending: futures.Future[LoadedModel]) -> None:
        began = time.monotonic()
        try:
            local = self._loaded_in_turn(slot)
        except Exception as error:
            failure = (
                error
                if isinstance(error, EmbedshareError)
                else EngineFailed(f"{slot.spec.id} does not load: {error}")
            )
            with self._lock:
                slot.loading, slot.reserved_bytes = None, 0
                if not isinstance(failure, Overloaded):
                    slot.failure, slot.failures = failure, slot.failures + 1
                    retries = RETRIES if slot.spec.is_local else REMOTE_RETRIES
                    slot.retry_at = time.monotonic() + retries.pause_s(slot.failures)
            logger.error("Could not load {}: {}", slot.spec.id, failure.message)
            pending.set_exception(failure)
            return
        with self._lock:
            slot.loading, slot.reserved_bytes = None, 0
            is_needed = slot.loaded is None  # else a swap was quicker
            loaded = self._put(slot, local) if slot.loaded is None else slot.loaded
            is_gone = self._slots.get(slot.spec.id) is not slot
            gone = self._retired(slot) if is_gone else None
        pending.set_result(loaded)
        if not is_needed:
            local.close()
            return
        seconds, size = time.monotonic() - began, slot.bytes / 1e6
        shown = _shown(local.description)
        logger.info("Loaded {}: {}, {:.0f} MB, in {:.1f} s", slot.spec.id, shown, size, seconds)
        if gone is not None:
            self._release(slot, gone)
        elif slot.spec.is_local:
            loading.keep_bytes(slot.settings, local.description.identity, slot.bytes)

    def _loaded_in_turn(self, slot: _Slot) -> LoadedProvider:
        """The slot's model. Converted models are loaded one after another: at once, each would take as much
        longer, and room for several would be taken from models that answer. Conversions and remote models
        take no turn."""
        settings = slot.settings
        if not slot.spec.is_local:
            return self._loaded_as(slot.spec, settings, self._check_open)
        if loading.needs_first_runs(settings, settings.model.device, None):
            self._make_room(slot, settings)
            return self._loaded_as(slot.spec, settings, self._check_open)
        with self._in_turn():
            self._make_room(slot, settings)
            return self._loaded_as(slot.spec, settings, self._check_open)

    def _make_room(self, slot: _Slot, settings: Settings, loaded_bytes: int = 0) -> None:
        """Reserve the memory of the slot's next model, for which idle ones are evicted; one that it replaces
        stays meanwhile. `loaded_bytes`: of further models, which are about to take over.

        Raises OutOfMemory if it needs more than all, Overloaded if the others are busy or pinned.
        """
        measured = slot.bytes if settings == slot.settings else 0
        needed = measured or loading.kept_bytes(settings) or memory_budget.estimate(settings)
        limit = self._base.model.max_model_bytes
        if limit and needed > limit:
            raise OutOfMemory(
                f"{slot.spec.id} needs {needed >> 20:,} MB; EMBEDDING_MAX_MODEL_BYTES allows "
                f"{limit >> 20:,} MB for all models"
            )
        budget = MemoryBudget(limit, settings.model.device)
        with self._in_turn():  # else smaller models would pass a large one
            until = time.monotonic() + ROOM_WAIT_S
            while not self._has_room(slot, needed, budget, loaded_bytes, may_wait=time.monotonic() < until):
                self._check_open()
                time.sleep(ROOM_LOOK_S)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Wait for the loads before; not for one that hangs."""
        is_mine = self._turn.acquire(timeout=TURN_S)
        try:
            self._check_open()
            yield
        finally:
            if is_mine:
                self._turn.release()

    def _has_room(
        self, slot: _Slot, needed: int, budget: MemoryBudget, loaded_bytes: int, may_wait: bool
    ) -> bool:
        """Reserve the bytes, after evictions if there are idle models. False if a busy one may become idle.

        Raises Overloaded if none can, or with `may_wait` false.
        """
        while True:
            with self._lock:
                others = [one for one in self._slots.values() if one is not slot]
                loaded = [one for one in (*others, slot) if one.loaded is not None]
                reserved = loaded_bytes + sum(one.reserved_bytes for one in others)
                left = budget.left(sum(one.bytes for one in loaded), reserved)
                if needed <= left or not any(one.loaded or one.loading for one in others):
                    slot.reserved_bytes = needed
                    return True
                doomed = eviction.victim(self._occupants(others))
                chosen = None if doomed is None else self._slots[doomed]
                evicted = None if chosen is None else self._retired(chosen)
                is_hopeful = any((one.loaded and not one.pinned) or one.loading for one in others)
            if chosen is None or evicted is None:
                if may_wait and is_hopeful:
                    return False
                raise Overloaded(
                    f"{slot.spec.id} needs {needed >> 20:,} MB, {max(0, left) >> 20:,} MB are left, and "
                    "every loaded model is busy or pinned; retry in 1 s",
                    retry_after_s=1.0,
                )
            self.evictions += 1
            logger.info("Evicting {} ({} needs {:,} MB)", doomed, slot.spec.id, needed >> 20)
            self._unload(chosen, evicted)

    def _occupants(self, slots: Iterable[_Slot]) -> list[Occupant]:
        return [
            Occupant(slot.spec.id, slot.loaded.used_at, slot.loaded.calls > 0, slot.pinned)
            for slot in slots
            if slot.loaded is not None and slot.spec.is_local
        ]

    def _loaded_as(self, spec: ModelSpec, settings: Settings, check: Callable[[], None]) -> LoadedProvider:
        """The model that `settings` name. Raises ModelMismatch if it has not the dimensions of `spec`."""
        local = self._load(spec, settings, check)
        found = local.description.dimension or local.description.token_dimension
        if spec.dimensions not in (None, found):
            local.close()
            name = settings.model.name
            raise ModelMismatch(f"{name} has {found} dimensions; {spec.id} is to have {spec.dimensions}")
        return local

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise SwapRefused("the model server is stopping")

    def _next_slot(self, spec: ModelSpec) -> _Slot:
        """The present slot of a specification that has not changed, else a new one."""
        before, settings = self._slots.get(spec.id), spec.settings(self._base)
        if before is None or before.settings != settings or before.spec.serving != spec.serving:
            return _Slot(spec, settings)
        return before

    def _take_over(
        self, registry: Registry, slots: dict[str, _Slot], ready: dict[str, LoadedProvider]
    ) -> None:
        with self._lock:
            left = [slot for spec_id, slot in self._slots.items() if slots.get(spec_id) is not slot]
            gone = [(slot, one) for slot in left if (one := self._retired(slot)) is not None]
            for spec in registry:
                slot = slots[spec.id]
                if slot.spec != spec:
                    slot.spec, slot.pinned, slot.keep_alive_s = spec, spec.pinned, spec.keep_alive_s
                if spec.id in ready:
                    self._put(slot, ready[spec.id])
            self._registry, self._slots = registry, slots
        for slot, one in gone:
            if not one.calls:
                self._release(slot, one)

    def _keep(self) -> None:
        """Unload models whose keep-alive time is over."""
        while not self._closed.wait(KEEPER_S):
            with self._lock:
                now = time.monotonic()
                over = [slot for slot in self._slots.values() if _is_over(slot, now)]
                due = [(slot, one) for slot in over if (one := self._retired(slot)) is not None]
            for slot, one in due:
                self._release(slot, one)

    def _entry(self, slot: _Slot, now: float) -> dict[str, Any]:
        loaded, described = slot.loaded, slot.description
        idle_s = None if loaded is None else now - loaded.used_at
        expires = idle_s is not None and slot.keep_alive_s >= 0
        return {
            "id": slot.spec.id,
            "aliases": list(slot.spec.aliases),
            "default": slot.spec.id == self._registry.default.id,
            "name": slot.settings.model.name,
            "title": slot.spec.title,
            "provider": slot.spec.provider,
            "space": slot.spec.space,
            "failover": list(slot.spec.failover),
            "failovers": slot.failovers,
            "service": None if loaded is None else loaded.provider.service(),
            "state": slot.state.value,
            "bytes": slot.bytes,
            "idle_s": idle_s,
            "uptime_s": None if loaded is None else now - loaded.loaded_at,
            "active": 0 if loaded is None else loaded.calls,
            "calls": slot.calls_before + (0 if loaded is None else loaded.total),
            "loads": slot.loads,
            "pinned": slot.pinned,
            "keep_alive_s": slot.keep_alive_s,
            "expires_s": max(0.0, slot.keep_alive_s - (idle_s or 0.0)) if expires else None,
            "error": None if slot.failure is None else slot.failure.message,
            "model": None if described is None else msgspec.to_builtins(described),
        }


def _is_over(slot: _Slot, now: float) -> bool:
    """Whether a model's keep-alive time is over."""
    loaded = slot.loaded
    if loaded is None or loaded.calls or slot.pinned or slot.keep_alive_s < 0:
        return False
    least_s = slot.keep_alive_s if loaded.total else max(_FIRST_CALL_S, slot.keep_alive_s)
    return now - loaded.used_at >= least_s


def _wait(pending: futures.Future[LoadedModel], context: CallContext, name: str, latest: float) -> None:
    """Wait for a load until the caller's deadline or the moment `latest`.

    Raises the load's error, DeadlineExceeded.
    """
    until = min(context.deadline, latest)
    while not futures.wait([pending], timeout=min(0.2, max(0.0, until - time.monotonic()))).done:
        if time.monotonic() >= until or context.is_gone():
            raise DeadlineExceeded(f"{name} did not load in time; loading continues")
    error = pending.exception()
    if isinstance(error, EmbedshareError):
        raise copy(error)


def _check_identity(slot: _Slot, identity: str | None) -> None:
    described = slot.description
    if identity is not None and described is not None and identity != described.identity:
        raise ModelSwapped(
            f"{slot.spec.id} is of another vector space ({described.identity[:12]}) than the caller's "
            f"({identity[:12]}): {described.model_name} serves now"
        )


def _serves(held: LoadedModel, wanted: Settings) -> bool:
    """Whether the loaded model is the wanted one, on the wanted device."""
    if not loading.same_device(held.settings.model.device, wanted.model.device):
        return False
    return families.locate(wanted).identity == held.description.identity


def _shown(described: ModelDescription) -> str:
    return f"{described.model_name} ({described.identity[:12]}) on {described.device}"
