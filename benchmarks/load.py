"""Load: processes that each send one call, wait for the answer, and send the next call."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.callers import Caller, Session
from benchmarks.figures import Sample

#: Uncounted calls of each process before a window begins.
WARM_UP_CALLS = 3
ANSWER_LIMIT_S = 300.0
#: Seconds between the start command and the start: enough time to reach sixteen processes.
LEAD_S = 0.05


class Fleet:
    """Client processes for any caller; idle ones sleep on a pipe.

    `texts` are their inputs, one a call; a list among them is one call of several texts.
    """

    def __init__(self, size: int, texts: Sequence[Any]) -> None:
        spawn = multiprocessing.get_context("spawn")  # nothing of the benchmark's own process is inherited
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for number in range(size):
            ours, theirs = spawn.Pipe()
            first = number * len(texts) // size
            process = spawn.Process(target=_run, args=(texts, first, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def connect(self, caller: Caller, clients: int) -> None:
        """Open a new connection in each of `clients` processes, and make a few calls through it."""
        self._tell(clients, ("connect", caller))

    def load(self, clients: int, window_s: float) -> Sample:
        """Return the load of `clients` connected processes for `window_s` seconds, started together."""
        start = time.monotonic() + LEAD_S
        parts = self._tell(clients, ("load", start, start + window_s))
        return Sample(
            latencies_s=np.concatenate([latencies for latencies, _, _ in parts]),
            completed=sum(completed for _, completed, _ in parts),
            window_s=window_s,
            load_cpu_s=sum(cpu_s for _, _, cpu_s in parts),
        )

    def begin(self, method: str, *arguments: Any) -> None:
        """Begin a call of a method of the first process's session; `finish` has its outcome."""
        self._pipes[0].send(("call", method, arguments))

    def is_finished(self) -> bool:
        """Return whether the begun call is over."""
        return self._pipes[0].poll()

    def finish(self) -> tuple[float, Any]:
        """Return the seconds that the call took in its process, and its result."""
        result: tuple[float, Any] = self._hear(self._pipes[0], "call")
        return result

    def close(self) -> None:
        """End the processes by closing their pipes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()

    def _tell(self, clients: int, command: tuple[Any, ...]) -> list[Any]:
        pipes = self._pipes[:clients]
        for pipe in pipes:
            pipe.send(command)
        return [self._hear(pipe, command[0]) for pipe in pipes]

    @staticmethod
    def _hear(pipe: Connection, what: str) -> Any:
        if not pipe.poll(ANSWER_LIMIT_S):
            raise TimeoutError(f"a load process did not answer {what} in {ANSWER_LIMIT_S:g} s")
        good, answer = pipe.recv()
        if not good:
            raise RuntimeError(f"a load process failed:\n{answer}")
        return answer


@dataclasses.dataclass(frozen=True)
class Clients:
    """Client processes, and their caller."""

    fleet: Fleet
    caller: Caller

    def measure(self, clients: int, window_s: float) -> Sample:
        """Return such a load over new connections: some servers close idle ones."""
        self.fleet.connect(self.caller, clients)
        return self.fleet.load(clients, window_s)

    def call(self, method: str, *arguments: Any) -> tuple[float, Any]:
        """Call a method of one process's session; return the seconds that it took there, and its result."""
        self.begin(method, *arguments)
        return self.fleet.finish()

    def begin(self, method: str, *arguments: Any) -> None:
        """Begin such a call without waiting."""
        self.fleet.connect(self.caller, 1)
        self.fleet.begin(method, *arguments)


def _run(texts: Sequence[Any], first: int, pipe: Connection) -> None:
    """Answer the fleet's commands in a load process until the pipe closes."""
    process = _Process(texts, first)
    while True:
        try:
            command, *arguments = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            pipe.send((True, getattr(process, command)(*arguments)))
        except KeyboardInterrupt:
            return
        except Exception:
            if not _tell_failure(pipe):
                return


def _tell_failure(pipe: Connection) -> bool:
    """Send a failure; return whether the fleet still listens, which may have failed on another process."""
    try:
        pipe.send((False, traceback.format_exc()))
    except OSError:
        return False
    return True


class _Process:
    def __init__(self, texts: Sequence[Any], first: int) -> None:
        self._texts = texts
        self._at = first  # continues over windows, so that texts repeat as late as possible
        self._session: Session | None = None

    def connect(self, caller: Caller) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
        self._session = caller.connect()
        for _ in range(WARM_UP_CALLS):
            self._session.one(self._next())

    def load(self, start: float, end: float) -> tuple[np.ndarray, int, float]:
        """Call from `start` to `end` (time.monotonic, common to all processes). Latency counts calls that
        begin in the window; the rate counts calls that end in it."""
        assert self._session is not None
        one, latencies, completed = self._session.one, [], 0
        time.sleep(max(0.0, start - time.monotonic()))
        cpu_before_s = time.process_time()
        now = time.monotonic()
        while now < end:
            text = self._next()
            began = time.perf_counter()
            one(text)
            latencies.append(time.perf_counter() - began)
            now = time.monotonic()
            completed += now <= end
        cpu_s = time.process_time() - cpu_before_s
        self._session.check()
        return np.array(latencies), completed, cpu_s

    def call(self, method: str, arguments: tuple[Any, ...]) -> tuple[float, Any]:
        began = time.perf_counter()
        result = getattr(self._session, method)(*arguments)
        taken_s = time.perf_counter() - began
        assert self._session is not None
        self._session.check()
        return taken_s, result

    def _next(self) -> Any:
        self._at = (self._at + 1) % len(self._texts)
        return self._texts[self._at]
