"""Work that arrives after the interpreter has closed its executors, or refuses every new thread."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from embedshare import threads
from embedshare.client import splitting

LIMIT_S = 10.0


@pytest.fixture
def refused() -> threads.Threads:
    """A pool whose executor refuses new work."""
    pool = threads.Threads(2, "late")
    pool.shutdown()
    return pool


def test_a_pool_goes_on_where_executors_take_nothing_any_more(refused: threads.Threads) -> None:
    places = threading.Semaphore(2)

    def call(number: int) -> tuple[int, str]:
        assert places.acquire(blocking=False)  # never more than two at once
        time.sleep(0.001)
        places.release()
        return number, threading.current_thread().name

    futures = [refused.submit(call, number) for number in range(50)]
    done = [future.result(LIMIT_S) for future in futures]
    assert [number for number, _ in done] == list(range(50))
    assert {name for _, name in done} == {"late"}


def test_its_errors_are_the_callers(refused: threads.Threads) -> None:
    with pytest.raises(ZeroDivisionError):
        refused.submit(lambda: 1 // 0).result(LIMIT_S)
    assert refused.submit(lambda: "next").result(LIMIT_S) == "next"


def test_without_any_new_thread_the_one_that_submits_does_the_work(
    refused: threads.Threads, no_new_threads: None
) -> None:
    future: Future[threading.Thread] = refused.submit(threading.current_thread)
    assert future.done()
    assert future.result() is threading.current_thread()


def test_work_that_was_cancelled_while_it_waited_is_not_done(refused: threads.Threads) -> None:
    gate, done = threading.Event(), []
    held = [refused.submit(gate.wait, LIMIT_S) for _ in range(2)]
    dropped, kept = refused.submit(done.append, "dropped"), refused.submit(done.append, "kept")
    assert dropped.cancel()
    gate.set()
    kept.result(LIMIT_S)
    assert all(future.result(LIMIT_S) for future in held)
    assert done == ["kept"]


def cut(count: int) -> list[range]:
    return [range(at, at + 1) for at in range(count)]


def in_pieces(call: Any, count: int = 20) -> list[Any]:
    return splitting.each(list(map(str, range(count))), cut(count), call, False)


def test_pieces_are_done_here_without_any_new_thread(no_new_threads: None) -> None:
    assert in_pieces(lambda part: (part[0], threading.current_thread())) == [
        (str(number), threading.current_thread()) for number in range(20)
    ]


def test_two_pieces_are_under_way_at_once() -> None:
    both = threading.Barrier(2)

    def call(part: list[str]) -> str:
        both.wait(LIMIT_S)
        return part[0]

    assert in_pieces(call) == list(map(str, range(20)))


@pytest.mark.parametrize("where", ["here", "in the helper"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_one_piece_is_raised_when_the_other_has_ended_and_no_more_begin(
    where: str, error: type[BaseException]
) -> None:
    both, begun = threading.Barrier(2), []

    def call(part: list[str]) -> None:
        begun.append(part[0])
        if len(part[0]) > 1 or part[0] > "1":
            time.sleep(0.01)  # time for the others to stop
            return
        both.wait(LIMIT_S)
        if (threading.current_thread() is threading.main_thread()) == (where == "here"):
            raise error("this piece")

    with pytest.raises(error, match="this piece"):
        in_pieces(call, 200)
    assert len(begun) < 100
    assert not any(thread.name == "embedshare-piece" for thread in threading.enumerate())
