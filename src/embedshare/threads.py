"""Threads for work after the main thread has ended: from threads that outlive it, and in atexit handlers.

Executors then refuse work, in every Python. Python 3.12 and later also start no thread in an atexit handler,
and 3.12.0 and 3.12.1 none at all once the main thread has ended.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
X = TypeVar("X", bound=threading.Thread)


def start(work: Callable[[], object], name: str, *, daemon: bool) -> threading.Thread | None:
    """A thread that does `work`; None if no thread can be started any more."""
    return _started(threading.Thread(target=work, name=name, daemon=daemon))


def later(seconds: float, work: Callable[[], object]) -> threading.Timer | None:
    """A timer that does `work` in a daemon thread; None if no thread can be started any more."""
    timer = threading.Timer(seconds, work)
    timer.daemon = True
    return _started(timer)


def do(work: Callable[[], object], name: str) -> None:
    """Do `work` in a daemon thread, or in this one if none can be started any more."""
    if start(work, name, daemon=True) is None:
        work()


def _started(thread: X) -> X | None:
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


class Threads(Executor):
    """A pool of at most `most` threads that also does work submitted after the main thread has ended.

    Until then it is a ThreadPoolExecutor. Afterwards its threads are plain ones, and the submitting thread
    does the work if none can be started.
    """

    def __init__(self, most: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(most, name)
        self._most, self._name = most, name
        self._late: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running = 0
        self._lock = threading.Lock()

    def submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See Executor."""
        try:
            return self._pool.submit(call, *args, **kwargs)
        except RuntimeError:
            future: Future[T] = Future()
            self._late.append((future, partial(call, *args, **kwargs)))
        with self._lock:
            if self._running >= self._most:
                return future
            self._running += 1
        if start(self._do_late, self._name, daemon=False) is None:
            self._do_late()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See Executor."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def _do_late(self) -> None:
        while True:
            with self._lock:
                if not self._late:
                    self._running -= 1
                    return
                future, call = self._late.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del future, call  # they hold the result, which is the caller's alone
