"""The connected callers, and the processes that have ended."""

from __future__ import annotations

import subprocess
import sys

from embedshare.ipc.callers import Callers
from embedshare.ipc.codec import Caller


def test_a_process_lives_while_it_runs_here_or_is_connected() -> None:
    callers = Callers()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        callers.join(1, "127.0.0.1")
        stranger = callers.process_of(1)
        callers.introduce(1, Caller(running.pid, "worker"))
        worker = callers.process_of(1)
        callers.join(2, "192.0.2.7")
        callers.introduce(2, Caller(running.pid, "worker"))
        far = callers.process_of(2)
        assert (callers.is_living(worker), callers.is_living(far), callers.is_living(stranger)) == (
            True, True, False
        )  # fmt: skip
        callers.leave(1)
        callers.leave(2)
        assert callers.is_living(worker), "it runs, and may come again"
        assert not callers.is_living(far), "nobody can tell"
        running.kill()
    assert not callers.is_living(worker)
    callers.join(3, "::1")
    callers.introduce(3, Caller(worker[1] or 0, "worker"))
    assert callers.is_living(worker), "connected, whatever its number means here"
