"""How a child learns that its supervisor is gone, or wants it to stop.

Its standard input ends: that holds even when the supervisor is killed and can say nothing. On Windows a
thread that waits on standard input keeps others from loading libraries (numpy/numpy#24290): there the child
looks whether the supervisor still runs, and is asked to stop by Ctrl-Break.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from embedshare import platforms

VARIABLE = "EMBEDSHARE_LIFELINE"
#: On Windows: how often the child looks for its supervisor, in seconds.
LOOK_EVERY_S = 0.5


def environment(name: str) -> dict[str, str]:
    """What a supervisor adds to the environment of the child that it calls `name`."""
    return {VARIABLE: f"{os.getpid()} {name}"}


def follow(stop: Callable[[], None]) -> str | None:
    """Call `stop` when the supervisor lets go of this process, whose name there is returned; None, and
    nothing is done, where it has none."""
    line = os.environ.pop(VARIABLE, None)
    if line is None:
        return None
    pid, _, name = line.partition(" ")
    threading.Thread(target=_watch, args=(int(pid), stop), name="lifeline", daemon=True).start()
    return name


def _watch(supervisor: int, stop: Callable[[], None]) -> None:
    if platforms.WINDOWS:
        _wait_for_end_of(supervisor)
    else:
        _wait_for_end_of_input()
    stop()


def _wait_for_end_of_input() -> None:
    # os.read, not sys.stdin: a buffered reader held by a daemon thread breaks the interpreter's shutdown.
    while os.read(0, 1024):
        continue


def _wait_for_end_of(pid: int) -> None:
    import psutil  # there wherever a supervisor is, and needed on Windows alone

    paused = threading.Event()
    while psutil.pid_exists(pid):
        paused.wait(LOOK_EVERY_S)
