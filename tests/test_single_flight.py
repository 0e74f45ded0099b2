"""One slow query is in flight at a time, and every caller that arrives meanwhile gets its answer."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedshare.single_flight import SingleFlight
from tests.forking import forks, holds_in_forked_child
from tests.processes import wait_for


def test_callers_that_come_while_it_is_asked_ask_it_no_second_time() -> None:
    go_on, asked = threading.Event(), []

    def question() -> int:
        asked.append(1)
        go_on.wait(60)
        return len(asked)

    latest = SingleFlight(question)
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(latest.get, 0.2) for _ in range(8)]
    assert all(isinstance(each.exception(), TimeoutError) for each in waiting)
    assert len(asked) == 1
    go_on.set()
    assert wait_for(lambda: latest.get(30) > 1 and latest.get(30)) == len(asked)


def test_its_error_is_raised_in_each_caller() -> None:
    latest = SingleFlight(lambda: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            latest.get(30)


@forks
def test_a_forked_child_asks_by_itself_also_while_its_parent_waits() -> None:
    asking, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    def question() -> int:
        if os.getpid() == parent:
            asking.set()
            go_on.wait(60)
        return os.getpid()

    latest = SingleFlight(question)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(latest.get, 60)
        assert asking.wait(30)
        assert holds_in_forked_child(lambda: latest.get(30) == os.getpid())
        go_on.set()
        assert waiting.result(30) == parent
