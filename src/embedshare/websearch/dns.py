"""Resolves names by a deadline, which the system's resolver itself lacks."""

from __future__ import annotations

import queue
import socket
import threading
import time

from embedshare import platforms, threads
from embedshare.errors import FetchFailed

#: Names being resolved at once, abandoned ones included.
AT_ONCE = 16
_places = threading.BoundedSemaphore(AT_ONCE)


def resolve(host: str, port: int, deadline: float) -> list[str]:
    """The addresses of a host and a port, by the moment `deadline` of `time.monotonic()`.

    Raises OSError for a name without an address, and FetchFailed if the answer takes longer.
    """
    places = _places
    if not places.acquire(timeout=max(0.0, deadline - time.monotonic())):
        raise FetchFailed(f"{host} cannot be resolved now: {AT_ONCE} other names are being resolved")
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found)))
        except (OSError, UnicodeError) as error:
            answers.put(error)
        finally:
            places.release()

    # A daemon: nothing ends a thread in the resolver, and no exit should wait for it.
    threads.do(ask, "embedshare-resolve")
    try:
        answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise FetchFailed(f"{host} was not resolved in time") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _all_free_after_fork() -> None:
    global _places
    _places = threading.BoundedSemaphore(AT_ONCE)


platforms.after_fork_in_child(_all_free_after_fork)
