"""What the system's resolver says, by a deadline: the resolver itself keeps to none."""

from __future__ import annotations

import queue
import socket
import threading
import time

from embedshare import platforms, threads
from embedshare.errors import FetchFailed

#: Names that are asked for at once, those that nobody waits for any more included.
AT_ONCE = 16
_places = threading.BoundedSemaphore(AT_ONCE)


def resolve(host: str, port: int, deadline: float) -> list[str]:
    """The addresses of a host and a port, by the moment `deadline` of `time.monotonic()`.

    Raises OSError for a name that has none, and FetchFailed where the answer takes longer.
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

    # A daemon, since nothing ends a thread that the resolver holds, and no exit should wait for it.
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
