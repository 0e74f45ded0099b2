"""Starts processes, sees that they work, starts again what ends, and leaves nothing behind.

One loop owns all state; everything else (ends, readiness, stop signals) reaches it as an event in one queue.
The clock and the way to start a process are arguments, so that tests bring their own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loguru import logger

from embedshare.errors import SupervisorError
from embedshare.supervise.policy import RestartPolicy
from embedshare.supervise.process import Child, ProcessSpec, last_lines

#: A process that is not ready after so many seconds has failed to start; a model may be downloaded first.
READY_S = 600.0
#: Readiness is asked for this often.
READY_EVERY_S = 0.1
#: A process that is asked to stop is killed after this many seconds more than it says it needs.
STOP_GRACE_S = 5.0


class Process(Protocol):
    """What the supervisor needs of a started process; `process.Child` is one."""

    pid: int

    def wait(self) -> int: ...
    def ask_to_stop(self) -> None: ...
    def kill(self) -> None: ...


@dataclass
class Watched:
    """A process as the supervisor sees it."""

    spec: ProcessSpec
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    process: Process | None = None
    state: str = "waiting"  # waiting, starting, ready, restarting, stopped, given up
    restarts: int = 0
    ready_since: float | None = None
    restart_at: float | None = None


@dataclass(frozen=True)
class _Ended:
    watched: Watched
    process: Process
    code: int


@dataclass(frozen=True)
class _Ready:
    watched: Watched
    process: Process


@dataclass(frozen=True)
class _Stop:
    pass


class Supervisor:
    """Runs processes in stages: each stage starts when all of the one before are ready.

    `on_ready` is called once, when everything runs. `drain_s`: how long a process may finish its work.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[ProcessSpec]],
        *,
        on_ready: Callable[[list[Watched]], None],
        drain_s: float,
        start: Callable[[ProcessSpec], Process] = Child,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages = [[Watched(spec) for spec in stage] for stage in stages]
        self._on_ready = on_ready
        self._stop_s = drain_s + STOP_GRACE_S
        self._start_process = start
        self._clock = clock
        self._events: queue.SimpleQueue[_Ended | _Ready | _Stop] = queue.SimpleQueue()
        self._stopping = threading.Event()

    @property
    def watched(self) -> list[Watched]:
        """All processes, in the order they are started in."""
        return [watched for stage in self._stages for watched in stage]

    def stop(self) -> None:
        """Ask the loop to stop everything. May be called from a signal handler or another thread."""
        self._events.put(_Stop())

    def run(self) -> None:
        """Start everything, keep it running until `stop()`, then stop it.

        Raises SupervisorError where something does not start, or nothing is left that could be kept running;
        nothing runs any more then.
        """
        try:
            for stage in self._stages:
                if not self._start_stage(stage):
                    return
            self._on_ready(self.watched)
            self._keep_running()
        finally:
            self._stop_everything()

    def _start_stage(self, stage: list[Watched]) -> bool:
        """Start a stage and wait until it is ready; False where a stop was asked for meanwhile."""
        deadline = self._clock() + READY_S
        for watched in stage:
            self._start(watched)
        while any(watched.state != "ready" for watched in stage):
            event = self._next_event(deadline)
            if isinstance(event, _Stop):
                return False
            if isinstance(event, _Ready):
                self._note_ready(event)
            elif isinstance(event, _Ended) and event.watched in stage:
                event.watched.process = None
                raise SupervisorError(_did_not_start(event))
            elif isinstance(event, _Ended):
                self._ended(event)
            elif self._clock() >= deadline:
                late = ", ".join(watched.spec.name for watched in stage if watched.state != "ready")
                raise SupervisorError(
                    f"not ready after {READY_S:g} s: {late}; see {stage[0].spec.log.parent}"
                )
            self._restart_what_is_due()
        return True

    def _keep_running(self) -> None:
        while True:
            due = [watched.restart_at for watched in self.watched if watched.restart_at is not None]
            event = self._next_event(min(due, default=None))
            if isinstance(event, _Stop):
                return
            if isinstance(event, _Ready):
                self._note_ready(event)
            elif isinstance(event, _Ended):
                self._ended(event)
            self._restart_what_is_due()

    def _next_event(self, until: float | None) -> _Ended | _Ready | _Stop | None:
        """The next event; None when `until` has come. Wakes often, so that Windows runs signal handlers."""
        while True:
            left = None if until is None else until - self._clock()
            if left is not None and left <= 0:
                return None
            try:
                return self._events.get(timeout=0.5 if left is None else min(0.5, left))
            except queue.Empty:
                due = [watched.restart_at for watched in self.watched if watched.restart_at is not None]
                if due and min(due) <= self._clock():
                    return None

    def _start(self, watched: Watched) -> None:
        try:
            watched.process = process = self._start_process(watched.spec)
        except OSError as error:
            raise SupervisorError(f"{watched.spec.name} cannot be started: {error}") from None
        watched.state, watched.restart_at, watched.ready_since = "starting", None, None
        logger.info("{} starts, pid {}, port {}", watched.spec.name, process.pid, watched.spec.port)
        name = watched.spec.name
        threading.Thread(
            target=lambda: self._events.put(_Ended(watched, process, process.wait())),
            name=f"{name}-end",
            daemon=True,
        ).start()
        threading.Thread(
            target=self._ask_until_ready, args=(watched, process), name=f"{name}-ready", daemon=True
        ).start()

    def _ask_until_ready(self, watched: Watched, process: Process) -> None:
        said = ""
        while watched.process is process and not self._stopping.wait(READY_EVERY_S):
            try:
                ready = watched.spec.ready()
            except Exception as error:  # a check of the door's own: it is not ready, and is asked again
                ready = False
                if str(error) != said:
                    said = str(error)
                    logger.warning("whether {} is ready could not be asked: {}", watched.spec.name, said)
            if ready:
                self._events.put(_Ready(watched, process))
                return

    def _note_ready(self, event: _Ready) -> None:
        if event.watched.process is event.process and event.watched.state == "starting":
            event.watched.state, event.watched.ready_since = "ready", self._clock()
            logger.info("{} is ready, pid {}", event.watched.spec.name, event.process.pid)

    def _ended(self, event: _Ended) -> None:
        watched = event.watched
        if watched.process is not event.process:
            return
        watched.process = None
        self._plan_restart(watched, f"{watched.spec.name} ended ({_how(event.code)})")

    def _plan_restart(self, watched: Watched, what: str) -> None:
        since, watched.ready_since = watched.ready_since, None
        pause_s = watched.policy.restart_in(None if since is None else self._clock() - since)
        said = " ".join(last_lines(watched.spec.log, 1))
        if pause_s is None:
            watched.state, watched.restart_at = "given up", None
            last = "\n".join(last_lines(watched.spec.log))
            logger.error("{}, again and again; given up. {} ends with:\n{}", what, watched.spec.log, last)
            if all(other.state == "given up" for other in self.watched):
                raise SupervisorError("nothing is left that could be kept running")
            return
        watched.state, watched.restart_at = "restarting", self._clock() + pause_s
        logger.warning("{}; it is started again in {:g} s; it last said: {}", what, pause_s, said)

    def _restart_what_is_due(self) -> None:
        for watched in self.watched:
            if watched.restart_at is not None and watched.restart_at <= self._clock():
                watched.restarts += 1
                try:
                    self._start(watched)
                except SupervisorError as error:
                    self._plan_restart(watched, error.message)

    def _stop_everything(self) -> None:
        """Stop the last stage first, so that what others depend on outlives them."""
        self._stopping.set()
        for stage in reversed(self._stages):
            running = [watched for watched in stage if watched.process is not None]
            for watched in running:
                _running(watched).ask_to_stop()
            self._wait_for_ends(running, self._clock() + self._stop_s)
            for watched in running:
                if watched.process is not None:
                    logger.warning("{} did not stop in {:g} s and is killed", watched.spec.name, self._stop_s)
                    watched.process.kill()
            self._wait_for_ends(running, self._clock() + STOP_GRACE_S)

    def _wait_for_ends(self, running: list[Watched], deadline: float) -> None:
        while any(watched.process is not None for watched in running):
            left = deadline - self._clock()
            if left <= 0:
                return
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(event, _Ended) and event.watched.process is event.process:
                event.watched.process, event.watched.state = None, "stopped"
                logger.info("{} stopped ({})", event.watched.spec.name, _how(event.code))


def _running(watched: Watched) -> Process:
    assert watched.process is not None
    return watched.process


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _did_not_start(event: _Ended) -> str:
    spec = event.watched.spec
    said = "\n".join(last_lines(spec.log))
    return f"{spec.name} did not start ({_how(event.code)}); its log, {spec.log}, ends with:\n{said}"
