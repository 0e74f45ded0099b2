"""The newest answer to a slow question, for any number of callers that must not wait for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from embedshare import platforms

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Asks `question` once at a time, in one thread; callers that arrive meanwhile get that same answer.

    The thread is a daemon, so that a hanging question does not keep the process from ending.
    """

    def __init__(self, question: Callable[[], T]) -> None:
        self._question = question
        self._asked: Future[T] | None = None
        self._begin()
        platforms.after_fork_in_child(self._begin)

    def get(self, patience_s: float) -> T:
        """The answer; raises what `question` raises, and TimeoutError after `patience_s` seconds."""
        with self._lock:
            asked = self._asked
            if asked is None:
                threading.Thread(target=self._answer, name="embedshare-latest", daemon=True).start()
            if asked is None or asked.done():
                asked = self._asked = Future()
                self._questions.put(asked)
        if not wait([asked], patience_s).done:
            raise TimeoutError(f"no answer within {patience_s:g} s")
        return asked.result()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._questions: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
        self._asked = None

    def _answer(self) -> None:
        while True:
            asked = self._questions.get()
            try:
                asked.set_result(self._question())
            except Exception as error:  # raised in the callers' threads
                asked.set_exception(error)
