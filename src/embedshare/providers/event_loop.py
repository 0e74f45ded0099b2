"""The event loop that the requests to remote services run in: one thread for all of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeVar

from embedshare.calls import CallContext
from embedshare.errors import DeadlineExceeded, EngineFailed

T = TypeVar("T")
#: Seconds between two looks whether the caller is still there.
_LOOK_S = 0.2


class EventLoop:
    """Runs coroutines for threads that wait for their results; thread-safe."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="remote", daemon=True).start()

    def result(self, work: Coroutine[Any, Any, T], context: CallContext) -> T:
        """What `work` returns or raises. It is cancelled at the deadline, and once the caller has left.

        Raises DeadlineExceeded.
        """
        pending: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while not wait([pending], min(_LOOK_S, max(0.0, context.deadline - time.monotonic()))).done:
                if time.monotonic() >= context.deadline:
                    raise DeadlineExceeded("the remote provider did not answer before the call's deadline")
                if context.is_gone():
                    raise DeadlineExceeded("the caller left before the remote provider answered")
            return pending.result()
        except CancelledError:
            raise EngineFailed("the request to the remote provider was cancelled") from None
        finally:
            pending.cancel()
