"""How a child learns that its supervisor wants it to stop, or is gone: its standard input ends.

One way for every operating system, and it holds when the supervisor is killed and can say nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

VARIABLE = "EMBEDSHARE_LIFELINE"


def environment() -> dict[str, str]:
    """What a supervisor adds to the environment of a child whose standard input it holds."""
    return {VARIABLE: "stdin"}


def follow(stop: Callable[[], None]) -> None:
    """Call `stop` when the supervisor lets go of this process.

    Does nothing in a process that has none.
    """
    if os.environ.pop(VARIABLE, None) == "stdin":
        threading.Thread(target=_wait_for_end, args=(stop,), name="lifeline", daemon=True).start()


def _wait_for_end(stop: Callable[[], None]) -> None:
    # os.read, not sys.stdin: a buffered reader held by a daemon thread breaks the interpreter's shutdown.
    while os.read(0, 1024):
        continue
    stop()
