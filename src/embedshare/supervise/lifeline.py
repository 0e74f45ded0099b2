"""Tells a child that its supervisor is gone, or wants it to stop.

The child's standard input ends, even when the supervisor is killed. On Windows a thread that waits on
standard input keeps others from loading libraries (numpy/numpy#24290): there the child polls the supervisor's
process, and Ctrl-Break asks it to stop.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from embedshare import platforms

VARIABLE = "EMBEDSHARE_LIFELINE"
#: Seconds between two polls of the supervisor on Windows.
LOOK_EVERY_S = 0.5


def environment(name: str) -> dict[str, str]:
    """The variable that a supervisor sets in the environment of the child `name`."""
    return {VARIABLE: f"{os.getpid()} {name}"}


def follow(stop: Callable[[], None]) -> str | None:
    """Call `stop` when the supervisor is gone or asks for it; returns this process's name there. None,
    without effect, if it has no supervisor."""
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
    import psutil  # installed with every supervisor, needed on Windows alone

    paused = threading.Event()
    while psutil.pid_exists(pid):
        paused.wait(LOOK_EVERY_S)
