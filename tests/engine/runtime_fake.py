"""A runtime for scheduler tests: each row names its sequence, and a test can hold a batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from embedshare.engine.scheduler import Device, Scheduler
from embedshare.errors import OutOfMemory

LIMIT_S = 10.0  # for any wait here; a longer wait is a fault
DIMENSION = 4
SLOW, POISON, HUGE, INTERRUPT = 90_001, 90_002, 90_003, 90_004  # token ids that trigger faults


class Runtime:
    """Return a row per sequence, made of its ids; `gate` holds batches, `holding` counts the held ones."""

    def __init__(self, fits: int = 1_000_000) -> None:
        self.fits = fits
        self.gate = threading.Event()
        self.gate.set()
        self.holding = threading.Semaphore(0)
        self.batches: list[list[list[int]]] = []
        self.running = self.most_running = 0
        self._lock = threading.Lock()

    def __call__(self, sequences: list[list[int]]) -> np.ndarray:
        with self._lock:
            self.batches.append(sequences)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            self.holding.release()
            assert self.gate.wait(LIMIT_S)
            first = {ids[0] for ids in sequences}
            if INTERRUPT in first:
                raise KeyboardInterrupt
            if POISON in first:
                raise ZeroDivisionError("poisoned")
            if len(sequences) > self.fits or HUGE in first:
                raise OutOfMemory(f"no room for {len(sequences)}")
            return rows_of(sequences)
        finally:
            with self._lock:
                self.running -= 1


def rows_of(sequences: list[list[int]]) -> np.ndarray:
    return np.array([[sum(ids), len(ids), ids[0], ids[-1]] for ids in sequences], np.float32)


def scheduler(run: Callable[[list[list[int]]], np.ndarray], **options: Any) -> Scheduler:
    given = {"permits": 1, "interactive_budget": 1000, "bulk_budget": 1000, "max_waiting_tokens": 100_000}
    merged = {**given, **options}
    permits = merged.pop("permits")
    device = merged.pop("device", None) or Device(permits, merged.pop("max_waiting_tokens"))
    merged.pop("max_waiting_tokens", None)
    dimension = merged.pop("dimension", DIMENSION)
    return Scheduler(run, dimension, device, **{"leaders": permits, "max_batches": permits, **merged})


def compute(
    ours: Scheduler, sequences: list[list[int]], wait_s: float = LIMIT_S, caller: int = 0, **options: Any
) -> np.ndarray:
    return ours.compute(sequences, deadline=time.monotonic() + wait_s, caller=caller, **options)[0]


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def hold(runtime: Runtime, ours: Scheduler, threads: ThreadPoolExecutor, ids: int = 1) -> Future[np.ndarray]:
    """Start a call whose batch stays in the runtime until `gate` is set."""
    runtime.gate.clear()
    held = threads.submit(compute, ours, [[ids]], caller=999)
    assert runtime.holding.acquire(timeout=LIMIT_S)
    return held


def assert_works(ours: Scheduler) -> None:
    """Fail unless the scheduler is idle: no call, token or permit is left over."""
    until(lambda: ours.active == 0)
    assert ours.waiting_tokens == 0
    np.testing.assert_array_equal(compute(ours, [[5, 6], [7]]), rows_of([[5, 6], [7]]))


def shared_batch(
    runtime: Runtime, ours: Scheduler, threads: ThreadPoolExecutor, firsts: list[int]
) -> list[Future[np.ndarray]]:
    """Make one call for each first id, all in one batch."""
    held = hold(runtime, ours, threads)
    calls = [threads.submit(compute, ours, [[first]], caller=n) for n, first in enumerate(firsts, 1)]
    until(lambda: ours.waiting_tokens == len(firsts))
    runtime.gate.set()
    held.result(LIMIT_S)
    return calls
