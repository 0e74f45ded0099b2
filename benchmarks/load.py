"""Load: processes that each send one call, wait for its answer, and send the next."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.callers import Caller, Session
from benchmarks.figures import Sample

#: Calls of each process before a window begins; none of them is counted.
WARM_UP_CALLS = 3
ANSWER_LIMIT_S = 300.0
#: Between the word to start and the start: longer than it takes to tell sixteen processes.
LEAD_S = 0.05


class Fleet:
    """Up to `size` client processes of one caller; those that a window does not need sleep on a pipe."""

    def __init__(self, caller: Caller, size: int, texts: list[str]) -> None:
        spawn = multiprocessing.get_context("spawn")  # nothing of the benchmark's own process comes along
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for number in range(size):
            ours, theirs = spawn.Pipe()
            first = number * len(texts) // size
            process = spawn.Process(target=_run, args=(caller, texts, first, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def measure(self, clients: int, window_s: float) -> Sample:
        """Load from `clients` processes for `window_s` seconds, begun by all of them at the same moment."""
        pipes = self._pipes[:clients]
        self._tell(pipes, ("connect",))
        start = time.monotonic() + LEAD_S
        parts = self._tell(pipes, ("load", start, start + window_s))
        return Sample(
            latencies_s=np.concatenate([latencies for latencies, _, _ in parts]),
            completed=sum(completed for _, completed, _ in parts),
            window_s=window_s,
            load_cpu_s=sum(cpu_s for _, _, cpu_s in parts),
        )

    def call(self, method: str, *arguments: Any) -> tuple[float, Any]:
        """Call a method of the first process's session: the seconds it took there, and its result."""
        self._tell(self._pipes[:1], ("connect",))
        result: tuple[float, Any] = self._tell(self._pipes[:1], ("call", method, arguments))[0]
        return result

    def close(self) -> None:
        """End the processes: they leave when their pipe closes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()

    @staticmethod
    def _tell(pipes: list[Connection], command: tuple[Any, ...]) -> list[Any]:
        for pipe in pipes:
            pipe.send(command)
        answers = []
        for pipe in pipes:
            if not pipe.poll(ANSWER_LIMIT_S):
                raise TimeoutError(f"a load process did not answer {command[0]} in {ANSWER_LIMIT_S:g} s")
            good, answer = pipe.recv()
            if not good:
                raise RuntimeError(f"a load process failed:\n{answer}")
            answers.append(answer)
        return answers


def _run(caller: Caller, texts: list[str], first: int, pipe: Connection) -> None:
    """A load process: answers the fleet's commands until the pipe closes."""
    process = _Process(caller, texts, first)
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
    """Whether the fleet still listens; where it gave up, on another process's failure, nobody has to know."""
    try:
        pipe.send((False, traceback.format_exc()))
    except OSError:
        return False
    return True


class _Process:
    def __init__(self, caller: Caller, texts: list[str], first: int) -> None:
        self._caller = caller
        self._texts = texts
        self._at = first  # goes on from window to window, so that texts come again as late as possible
        self._session: Session | None = None

    def connect(self) -> None:
        """A fresh connection, since idle ones are closed by some servers, and a few calls through it."""
        if self._session is not None:
            self._session.close()
        self._session = self._caller.connect()
        for _ in range(WARM_UP_CALLS):
            self._session.one(self._next())

    def load(self, start: float, end: float) -> tuple[np.ndarray, int, float]:
        """Calls from `start` to `end` (time.monotonic, which all processes share); a call that began in the
        window has its latency counted, one that ended in it counts for the rate."""
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

    def _next(self) -> str:
        self._at = (self._at + 1) % len(self._texts)
        return self._texts[self._at]
