"""The bytes of calls that the server holds: bounded, released, and no call waits forever."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedshare.ipc.byte_budget import SMALL_BYTES, ByteBudget

LIMIT = 10 * SMALL_BYTES


def test_small_messages_take_no_room() -> None:
    budget = ByteBudget(LIMIT)
    with budget.of(SMALL_BYTES), budget.of(SMALL_BYTES):
        assert budget.held == 0


def test_what_does_not_fit_waits_until_there_is_room() -> None:
    budget = ByteBudget(LIMIT)
    inside = threading.Event()

    def second() -> None:
        with budget.of(LIMIT // 2 + 1):
            inside.set()

    with ThreadPoolExecutor(1) as threads:
        with budget.of(LIMIT // 2):
            waiting = threads.submit(second)
            assert not inside.wait(0.1)
        waiting.result(10)
    assert budget.held == 0


def test_one_that_is_larger_than_all_room_goes_in_alone() -> None:
    budget = ByteBudget(LIMIT)
    with budget.of(3 * LIMIT):
        assert budget.held == 3 * LIMIT


def test_room_is_given_back_after_an_error() -> None:
    budget = ByteBudget(LIMIT)
    with pytest.raises(ConnectionResetError), budget.of(LIMIT):
        raise ConnectionResetError
    assert budget.held == 0


def test_many_senders_never_hold_more_than_the_limit() -> None:
    budget = ByteBudget(LIMIT)
    most = 0

    def send(number: int) -> None:
        nonlocal most
        dice = random.Random(number)
        for _ in range(50):
            with budget.of(dice.randint(1, LIMIT)):
                most = max(most, budget.held)

    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(send, range(16), timeout=60):
            pass
    assert 0 < most <= LIMIT
    assert budget.held == 0
