"""The pool loads models on request, unloads idle ones and those in the way, and lets their calls finish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from embedshare.calls import CallContext
from embedshare.errors import (
    DeadlineExceeded,
    ModelMismatch,
    ModelNotFound,
    ModelSwapped,
    OutOfMemory,
    Overloaded,
    UnknownModel,
)
from embedshare.identity import ModelDescription
from embedshare.models import memory_budget, pool
from embedshare.models.pool import ModelPool, State
from embedshare.models.registry import Registry
from embedshare.models.spec import ModelSpec
from embedshare.providers.local import Local
from embedshare.settings import Settings

MB = 1 << 20


class Model:
    """A local provider with only a name, which takes 100 MB."""

    model_bytes = 100 * MB

    def __init__(self, name: str) -> None:
        self.closed = False
        self.description = cast("ModelDescription", _Described(name))

    def close(self) -> None:
        self.closed = True

    def service(self) -> None:
        return None


class _Described:
    device, dimension = "cpu", 384

    def __init__(self, name: str) -> None:
        self.model_name = name
        self.identity = name * 16


class Loader:
    """Create models, or fail for names in `fails`; each load waits for `gate`."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.fails: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, spec: ModelSpec, settings: Settings, check: Callable[[], None]) -> Local:
        name = settings.model.name
        assert self.gate.wait(20)
        if name in self.fails:
            raise ModelNotFound(f"{name} is nowhere")
        self.loaded.append(name)
        return cast("Local", Model(name))


def watch(model: Local, ended: threading.Event) -> None:
    ended.wait()


def spec(name: str, **fields: Any) -> ModelSpec:
    return ModelSpec(id=name, name=name, **fields)


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    monkeypatch.setattr(pool, "_serves", lambda held, wanted: False)  # every swap is to another model
    monkeypatch.setattr(pool.loading, "kept_bytes", lambda settings: 0)
    monkeypatch.setattr(pool.loading, "keep_bytes", lambda *_: None)
    monkeypatch.setattr(pool.loading, "needs_first_runs", lambda *_: True)
    monkeypatch.setattr(pool, "ROOM_WAIT_S", 0.3)
    monkeypatch.setattr(memory_budget, "estimate", lambda settings: 100 * MB)
    monkeypatch.setattr(pool.weights, "find", lambda name, cache_dir: name)
    monkeypatch.setattr(pool.msgspec, "to_builtins", lambda described: {"model_name": described.model_name})
    return Loader()


@pytest.fixture
def make(loader: Loader) -> Iterator[Callable[..., ModelPool]]:
    made: list[ModelPool] = []

    def make(*specs: ModelSpec, limit: int = 0, default: str | None = None) -> ModelPool:
        settings = Settings().with_values({"EMBEDDING_MAX_MODEL_BYTES": limit})
        made.append(ModelPool(Registry(specs, default), settings, watch, loader))
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_a_model_is_loaded_once_for_all_who_ask_for_it_at_once(
    make: Callable[..., ModelPool], loader: Loader
) -> None:
    models = make(spec("a"), spec("b"))
    loader.gate.clear()

    def name_of(name: str) -> str:
        with models.lease(name) as leased:
            return leased.description.model_name

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(name_of, "b") for _ in range(8)]
        until(lambda: models.state("b") is State.LOADING)
        assert models.state("a") is State.STANDBY
        loader.gate.set()
        assert {one.result() for one in asked} == {"b"}
    assert loader.loaded == ["b"]
    assert models.calls == 0


def test_waiting_for_one_model_s_load_does_not_hold_up_another(
    make: Callable[..., ModelPool], loader: Loader
) -> None:
    models = make(spec("a"), spec("b"))
    models.load("a")
    loader.gate.clear()
    with pytest.raises(DeadlineExceeded, match="b did not load in time; loading continues"):
        models.load("b", CallContext(time.monotonic() + 0.05))
    with models.lease("a") as leased:
        assert leased.description.model_name == "a"
    loader.gate.set()
    until(lambda: models.state("b") is State.READY)


def test_the_default_answers_callers_that_name_none_and_an_unknown_name_has_those_that_are_there(
    make: Callable[..., ModelPool],
) -> None:
    models = make(spec("a", aliases=("first",)), spec("b"), default="b")
    with models.lease() as leased:
        assert leased.description.model_name == "b"
    with models.lease("first") as leased:
        assert leased.description.model_name == "a"
    with pytest.raises(UnknownModel, match="'c' is not served; served: a, first, b"):
        models.lease("c")


def test_the_least_recently_used_idle_model_makes_room(make: Callable[..., ModelPool]) -> None:
    models = make(spec("a"), spec("b"), spec("c"), spec("d"), limit=300 * MB)
    for name in ("a", "b", "c", "a"):
        models.load(name)
    with models.lease("b"):  # busy, and least recently used after c
        models.load("d")
        assert [models.state(name) for name in "abcd"] == [
            State.READY, State.READY, State.STANDBY, State.READY,
        ]  # fmt: skip
    assert models.evictions == 1
    assert models.describe("c") is not None


def test_a_load_waits_for_a_busy_model_to_become_idle(make: Callable[..., ModelPool]) -> None:
    models = make(spec("a"), spec("b"), limit=150 * MB)
    with ThreadPoolExecutor(1) as threads:
        with models.lease("a"):
            loading = threads.submit(models.load, "b")
            time.sleep(0.1)
            assert not loading.done()
        loading.result(20)
    assert [models.state(name) for name in "ab"] == [State.STANDBY, State.READY]


def test_converted_models_are_loaded_one_after_another(
    make: Callable[..., ModelPool], loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a load that waits for its turn has taken no room yet."""
    monkeypatch.setattr(pool.loading, "needs_first_runs", lambda *_: False)
    models = make(spec("a"), spec("b"), spec("c"), limit=250 * MB)
    models.load("a")
    loader.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        loads = [threads.submit(models.load, name) for name in "bc"]
        time.sleep(0.1)
        assert models.state("a") is State.READY
        loader.gate.set()
        for load in loads:
            load.result(20)
    assert models.evictions == 1


def test_a_swap_holds_both_models_and_evicts_a_third_for_it(make: Callable[..., ModelPool]) -> None:
    models = make(spec("a"), spec("b"), limit=250 * MB)
    models.load("a")
    models.load("b")
    models.swap("b", Settings().with_values({"EMBEDDING_MODEL_NAME": "c"}), lambda: None)
    assert [models.state(name) for name in "ab"] == [State.STANDBY, State.READY]
    models.load("a")
    assert models.evictions == 1
    with models.lease("a"), pytest.raises(Overloaded, match="b needs 100 MB, 50 MB are left"):
        models.swap("b", Settings().with_values({"EMBEDDING_MODEL_NAME": "d"}), lambda: None)
    assert models.entry("b")["name"] == "c"
    models.update(Registry([spec("a"), spec("b"), spec("new", preload=True)]))
    assert models.entry("new")["state"] == "ready"
    assert sum(one["state"] == "ready" for one in models.entries()) == 2


def test_a_busy_or_pinned_model_is_never_evicted(make: Callable[..., ModelPool]) -> None:
    models = make(spec("a", pinned=True), spec("b"), spec("c"), limit=200 * MB)
    models.load("a")
    with models.lease("b"), pytest.raises(Overloaded, match="busy or pinned") as raised:
        models.load("c")
    assert raised.value.fields["retry_after_s"] == 1.0
    assert models.state("c") is State.STANDBY  # the load was refused, not failed
    models.load("c")
    assert (models.state("a"), models.state("b")) == (State.READY, State.STANDBY)


def test_a_model_larger_than_the_budget_is_refused(make: Callable[..., ModelPool]) -> None:
    models = make(spec("a"), limit=50 * MB)
    with pytest.raises(OutOfMemory, match="a needs 100 MB; EMBEDDING_MAX_MODEL_BYTES allows 50 MB"):
        models.load("a")


def test_a_model_that_fails_to_load_fails_its_own_callers_for_a_while(
    make: Callable[..., ModelPool], loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = make(spec("a"), spec("b"))
    loader.fails.add("b")
    for _ in range(2):
        with pytest.raises(ModelNotFound, match="b is nowhere"):
            models.load("b")
    loader.fails.clear()
    with pytest.raises(ModelNotFound):
        models.load("b")
    assert models.entry("b")["error"] == "b is nowhere"
    models.load("a")
    models._slot("b").retry_at = 0.0
    models.load("b")
    assert loader.loaded == ["a", "b"]
    assert models.entry("b")["error"] is None


def test_a_health_check_loads_nothing_and_is_no_use(make: Callable[..., ModelPool], loader: Loader) -> None:
    models = make(spec("a"))
    check = CallContext(is_check=True)
    with pytest.raises(Overloaded, match="a health check loads no model"):
        models.lease("a", None, check)
    assert (loader.loaded, models.state("a")) == ([], State.STANDBY)
    models.load("a")
    before = models._slot("a").loaded
    assert before is not None
    used = before.used_at
    with models.lease("a", None, check):
        pass
    assert (before.used_at, before.total) == (used, 1)


def test_an_idle_model_goes_after_its_keep_alive_time_but_no_pinned_one(
    make: Callable[..., ModelPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "KEEPER_S", 0.02)
    models = make(
        spec("a", keep_alive_s=0.1),
        spec("b", keep_alive_s=0.1, pinned=True),
        spec("c"),
        spec("d", keep_alive_s=0),
    )
    for name in "abcd":
        models.load(name)
    assert models.state("d") in (State.UNLOADING, State.STANDBY)  # without delay
    until(lambda: models.state("a") is State.STANDBY)
    assert [models.state(name) for name in "bc"] == [State.READY, State.READY]
    models.keep_alive("c", 0.0)
    until(lambda: models.state("c") is State.STANDBY)


def test_an_unloaded_model_is_closed_after_its_last_call(make: Callable[..., ModelPool]) -> None:
    models = make(spec("a"))
    with models.lease() as first:
        old: Any = first.provider
        assert models.unload("a")
        assert not models.unload("a")
        assert models.state("a") is State.UNLOADING
        assert not old.closed
    until(lambda: old.closed)
    assert models.entry("a")["calls"] == 1


def test_a_model_that_was_replaced_is_closed_with_the_last_call_that_leases_it(
    make: Callable[..., ModelPool],
) -> None:
    models = make(spec("a"))
    with models.lease() as first:
        old: Any = first.provider
        identity = first.description.identity
        with models.lease("", identity):
            models.swap("", Settings().with_values({"EMBEDDING_MODEL_NAME": "b"}), lambda: None)
            assert models.describe().model_name == "b"  # type: ignore[union-attr]
        assert not old.closed
    until(lambda: old.closed)
    with pytest.raises(ModelSwapped, match="b serves now"):
        models.lease("", identity)
    assert models.calls == 0


def test_a_swap_that_fails_changes_nothing(make: Callable[..., ModelPool], loader: Loader) -> None:
    models = make(spec("a"))
    models.load("a")
    loader.fails.add("b")
    with pytest.raises(ModelNotFound):
        models.swap("", Settings().with_values({"EMBEDDING_MODEL_NAME": "b"}), lambda: None)
    assert models.describe().model_name == "a"  # type: ignore[union-attr]
    assert (models.swaps, models.failed_swaps) == (0, 1)


def test_a_call_that_fails_ends_its_lease(make: Callable[..., ModelPool]) -> None:
    models = make(spec("a"))

    def fails() -> None:
        with models.lease():
            assert models.calls == 1
            raise ValueError("an error of the call")

    with pytest.raises(ValueError, match="of the call"):
        fails()
    assert models.calls == 0


def test_a_new_registry_is_taken_over_at_once(make: Callable[..., ModelPool], loader: Loader) -> None:
    models = make(spec("a"), spec("b"), spec("c"))
    for name in "abc":
        models.load(name)
    kept: Any = models._slot("a").loaded
    changed = ModelSpec(id="b", name="b2", aliases=("bee",))
    models.update(Registry([spec("a", pinned=True), changed, spec("d"), spec("e", preload=True)]))
    assert [one["id"] for one in models.entries()] == ["a", "b", "d", "e"]
    assert models._slot("a").loaded is kept
    assert models.entry("a")["pinned"]
    assert models.entry("bee")["name"] == "b2"
    assert [models.state(name) for name in "abde"] == [
        State.READY, State.READY, State.STANDBY, State.READY,
    ]  # fmt: skip
    with pytest.raises(UnknownModel):
        models.lease("c")
    assert loader.loaded == ["a", "b", "c", "b2", "e"]


def test_a_new_registry_with_a_model_that_does_not_load_changes_nothing(
    make: Callable[..., ModelPool], loader: Loader
) -> None:
    models = make(spec("a"), spec("b"))
    models.load("b")
    loader.fails.add("gone")
    with pytest.raises(ModelNotFound):
        models.update(Registry([spec("c", preload=True), ModelSpec(id="b", name="gone")]))
    assert [one["id"] for one in models.entries()] == ["a", "b"]
    assert models.state("b") is State.READY


def test_a_model_of_other_dimensions_than_the_registry_says_is_refused(
    make: Callable[..., ModelPool],
) -> None:
    models = make(spec("a", dimensions=768))
    with pytest.raises(ModelMismatch, match="a has 384 dimensions; a is to have 768"):
        models.load("a")


def test_a_new_registry_or_a_swap_with_other_dimensions_than_it_says_changes_nothing(
    make: Callable[..., ModelPool],
) -> None:
    models = make(spec("a", dimensions=384))
    models.load("a")
    with pytest.raises(ModelMismatch, match="b has 384 dimensions; b is to have 768"):
        models.update(Registry([spec("a", dimensions=384), spec("b", dimensions=768, preload=True)]))
    assert [one["id"] for one in models.entries()] == ["a"]
    assert models.state("a") is State.READY


def test_a_load_that_a_swap_overtakes_is_given_up(make: Callable[..., ModelPool], loader: Loader) -> None:
    models = make(spec("a"))
    made: list[Any] = []
    load = models._load

    def slow(spec: ModelSpec, settings: Settings, check: Callable[[], None]) -> Local:
        local = load(spec, settings, check)
        made.append(local)
        return local

    models._load = slow
    loader.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        asked = threads.submit(models.load, "a")
        until(lambda: models.state("a") is State.LOADING)
        swapped = threads.submit(
            models.swap, "", Settings().with_values({"EMBEDDING_MODEL_NAME": "b"}), lambda: None
        )
        loader.gate.set()
        asked.result()
        swapped.result()
    until(lambda: [one.description.model_name for one in made if not one.closed] == ["b"])
    assert models.describe().model_name == "b"  # type: ignore[union-attr]


def test_a_pinned_model_stays_whatever_its_keep_alive_time(make: Callable[..., ModelPool]) -> None:
    models = make(spec("a", keep_alive_s=0, pinned=True))
    models.load("a")
    assert models.state("a") is State.READY
