"""A search keeps what it began with; what changes waits for the searches that began before, and no others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late

import pytest

from embedshare.sessions.store.visibility import Visibility
from tests.processes import wait_for


def started(call: Callable[[], None]) -> Future[None]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future


def is_waiting(future: Future[None]) -> bool:
    with pytest.raises(Late):
        future.result(0.1)
    return True


def test_a_search_keeps_what_was_hidden_when_it_began() -> None:
    seen = Visibility()
    seen.stage("s", "v1")
    with seen.reading("s") as first:
        seen.change("s", show=["v1"], hide=["v0"])
        with seen.reading("s") as second:
            assert (first, second) == (frozenset({"v1"}), frozenset({"v0"}))
    assert seen.hidden("s") == {"v0"}
    assert seen.hidden("t") == frozenset()


def test_staging_waits_for_searches_that_began_before_and_not_for_later_ones() -> None:
    seen, entered, leave = Visibility(), threading.Event(), threading.Event()

    def search() -> None:
        with seen.reading("s") as hidden:
            assert hidden == frozenset()
            entered.set()
            leave.wait(30)

    earlier = started(search)
    assert entered.wait(30)
    staging = [started(lambda: seen.stage("s", "v1")) for _ in range(2)]
    wait_for(lambda: seen.hidden("s") == {"v1"})
    assert all(is_waiting(each) for each in staging)
    seen.stage("t", "v1")  # another session's searches are not waited for
    with seen.reading("s") as later:
        assert later == {"v1"}
        leave.set()
        for each in [earlier, *staging]:
            each.result(30)


def test_deleting_waits_for_searches_that_may_see_what_is_deleted() -> None:
    seen = Visibility()
    with seen.reading("s"):
        seen.change("s", hide=["v1"])
        waiting = started(lambda: seen.wait_for_earlier("s"))
        assert is_waiting(waiting)
    waiting.result(30)
    with seen.reading("s"):
        seen.wait_for_earlier("s")


def test_a_session_that_is_dropped_shows_nothing_meanwhile() -> None:
    seen = Visibility()
    with seen.dropping("s"):
        with seen.dropping("s"), seen.reading("s") as hidden:
            assert hidden is None
        with seen.reading("s") as hidden, seen.reading("t") as other:
            assert (hidden, other) == (None, frozenset())
    with seen.reading("s") as hidden:
        assert hidden == frozenset()


def test_nothing_is_kept_of_a_session_without_hidden_versions_and_searches() -> None:
    seen = Visibility()
    with seen.reading("s"):
        seen.stage("t", "v1")
    with seen.dropping("u"):
        pass
    seen.change("t", show=["v1"])
    assert seen._sessions == {}
