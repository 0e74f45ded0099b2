"""The watchdog gives up a runtime that holds a batch forever or fails every call; it leaves others alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest

from embedshare.calls import CallContext
from embedshare.engine import watchdog
from embedshare.engine.watchdog import PROBES, RuntimeHealth, watch
from embedshare.errors import DeadlineExceeded, EmbedshareError, EngineFailed, OutOfMemory, Overloaded


class Engine:
    """`outcome(n)` is the error of the n-th probe, or None if it succeeds."""

    def __init__(self, outcome: Callable[[int], EmbedshareError | None]) -> None:
        self.now = 0.0
        self.runtime_health = RuntimeHealth(lambda: self.now)
        self.outcome = outcome
        self.probes = 0

    def probe(self, context: CallContext) -> None:
        self.probes += 1
        error = self.outcome(self.probes)
        self.batch(error is None)
        if error is not None:
            raise error

    def batch(self, succeeded: bool) -> None:
        self.runtime_health.enter()
        self.runtime_health.leave(succeeded)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PROBE_EVERY_S", 0.0)


def watched(engine: Engine, until: Callable[[], bool]) -> list[str]:
    """Return the reasons for which the watch gave up before `until` was true."""
    stop, reasons = threading.Event(), []
    thread = threading.Thread(target=watch, args=(engine, stop, 10.0, reasons.append))
    thread.start()
    for _ in itertools.takewhile(lambda _: thread.is_alive() and not until(), itertools.count()):
        thread.join(0.001)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    return reasons


@pytest.mark.parametrize("error", [EngineFailed("device lost"), OutOfMemory("full")])
def test_a_runtime_that_fails_whatever_it_is_asked_is_given_up(error: EmbedshareError) -> None:
    engine = Engine(lambda _: error)
    engine.batch(succeeded=False)
    (reason,) = watched(engine, lambda: False)
    assert engine.probes == PROBES
    assert error.message in reason


def test_one_text_that_cannot_be_computed_is_no_reason() -> None:
    engine = Engine(lambda _: None)
    engine.batch(succeeded=False)
    assert watched(engine, lambda: not engine.runtime_health.failing) == []
    assert engine.probes == 1


def test_failures_that_pass_are_no_reason() -> None:
    engine = Engine(lambda number: None if number % PROBES == 0 else OutOfMemory("full"))
    engine.batch(succeeded=False)

    def failed_again() -> bool:
        if not engine.runtime_health.failing:
            engine.batch(succeeded=False)
        return engine.probes > 4 * PROBES

    assert watched(engine, failed_again) == []


@pytest.mark.parametrize("error", [DeadlineExceeded("busy"), Overloaded("busy", retry_after_s=1.0)])
def test_a_runtime_that_is_busy_is_not_given_up(error: EmbedshareError) -> None:
    engine = Engine(lambda _: error)
    engine.batch(succeeded=False)
    assert watched(engine, lambda: engine.probes > 3 * PROBES) == []


def test_a_batch_that_never_comes_back_is_found_beside_others_that_do() -> None:
    engine = Engine(lambda _: None)
    engine.runtime_health.enter()
    stuck = threading.Thread(target=engine.batch, args=(True,))
    stuck.start()
    stuck.join()
    engine.now = 9.0
    assert watched(engine, lambda: engine.runtime_health.longest_inside_s > 10 or _later(engine)) != []


def _later(engine: Engine) -> bool:
    engine.now += 0.5
    return False


def test_nothing_inside_is_no_reason_however_long() -> None:
    engine = Engine(lambda _: None)
    engine.batch(succeeded=True)
    engine.now = 1e9
    assert engine.runtime_health.longest_inside_s == 0.0
    assert engine.probes == 0
