"""Models of one device share its permits and its limit of queued tokens, and take turns."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedshare.engine.scheduler import Device, Scheduler
from embedshare.errors import Overloaded
from tests.engine.runtime_fake import DIMENSION, LIMIT_S, compute, scheduler, until

#: A text that makes a bulk batch by itself, and one that does not.
LONG, SHORT = [7] * 600, [7] * 4


class Order:
    """Runtimes that record whose batch is inside, and hold each until the test releases it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.inside = 0
        self.most_inside = 0
        self._lock = threading.Lock()
        self._passes = threading.Semaphore(0)

    def model(self, name: str, device: Device) -> Scheduler:
        def run(sequences: list[list[int]]) -> np.ndarray:
            with self._lock:
                self.begun.append(name)
                self.inside += 1
                self.most_inside = max(self.most_inside, self.inside)
            assert self._passes.acquire(timeout=LIMIT_S)
            with self._lock:
                self.inside -= 1
            return np.full((len(sequences), DIMENSION), ord(name), np.float32)

        return scheduler(run, device=device, permits=2, bulk_budget=600)

    def pass_one(self) -> None:
        self._passes.release()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_models_share_the_permits_of_their_device(threads: ThreadPoolExecutor) -> None:
    order, device = Order(), Device(1, 100_000)
    models = {name: order.model(name, device) for name in "abc"}
    asked = [threads.submit(compute, models[name], [SHORT]) for name in "abc"]
    for number in range(3):
        until(lambda: len(order.begun) == number + 1)  # noqa: B023  within this round
        order.pass_one()
    assert [float(one.result()[0, 0]) for one in asked] == [ord(name) for name in "abc"]
    assert sorted(order.begun) == ["a", "b", "c"]
    assert order.most_inside == 1
    until(lambda: device.permits == 1)


def test_short_work_of_one_model_goes_before_bulk_of_another(threads: ThreadPoolExecutor) -> None:
    order, device = Order(), Device(1, 100_000)
    bulk, short = order.model("b", device), order.model("s", device)
    long_call = threads.submit(compute, bulk, [LONG] * 4)
    until(lambda: order.begun == ["b"])
    asked = threads.submit(compute, short, [SHORT])
    until(lambda: short.waiting_tokens == len(SHORT))
    order.pass_one()
    until(lambda: len(order.begun) == 2)
    assert order.begun == ["b", "s"]
    for number in range(3, 6):
        order.pass_one()
        until(lambda: len(order.begun) >= min(5, number))  # noqa: B023  within this round
    order.pass_one()
    assert asked.result().shape == (1, DIMENSION)
    assert long_call.result().shape == (4, DIMENSION)
    assert order.begun == ["b", "s", "b", "b", "b"]


def test_models_with_work_of_the_same_kind_take_turns(threads: ThreadPoolExecutor) -> None:
    order, device = Order(), Device(1, 100_000)
    models = [order.model(name, device) for name in "ab"]
    calls = [threads.submit(compute, model, [LONG] * 3, caller=number) for number, model in enumerate(models)]
    until(lambda: order.begun and sum(one.waiting_tokens for one in models) == 5 * len(LONG))
    for number in range(2, 8):
        order.pass_one()
        until(lambda: len(order.begun) >= min(6, number))  # noqa: B023  within this round
    assert [one.result().shape for one in calls] == [(3, DIMENSION)] * 2
    assert order.begun in (list("ababab"), list("bababa"))


def test_the_limit_of_queued_tokens_is_of_all_models_together(threads: ThreadPoolExecutor) -> None:
    order, device = Order(), Device(1, 1000)
    first, second = order.model("a", device), order.model("b", device)
    held = threads.submit(compute, first, [SHORT])
    until(lambda: order.begun == ["a"])
    queued = threads.submit(compute, first, [LONG])
    until(lambda: first.waiting_tokens == len(LONG))
    with pytest.raises(Overloaded, match="600 tokens are queued, and 1,000 are allowed"):
        compute(second, [LONG])
    for _ in range(2):
        order.pass_one()
    assert held.result().shape == queued.result().shape == (1, DIMENSION)


def test_a_model_that_is_closed_leaves_its_device() -> None:
    device = Device(1, 1000)
    ours = Order().model("a", device)
    assert device.schedulers == [ours]
    ours.close()
    assert device.schedulers == []
