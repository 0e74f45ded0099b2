"""Starts processes, watches and restarts them, and stops them all at its end.

One loop owns all state; everything else (ends, readiness, operators' commands, stop signals) reaches it as an
event in one queue. The clock and the function that starts a process are arguments, so that tests bring their
own.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from loguru import logger

from embedshare import platforms
from embedshare.errors import EmbedshareError, SupervisorError
from embedshare.supervise import held_port, liveness
from embedshare.supervise.liveness import Liveness
from embedshare.supervise.process import Child, ProcessSpec, last_lines
from embedshare.supervise.restart_policy import FAULTS, Faults, RestartPolicy

#: Seconds after which a start has failed without readiness; a model may be downloaded first.
READY_S = 600.0
#: Seconds between two readiness checks.
READY_EVERY_S = 0.1
#: Seconds, beyond its own stop time, after which a stopping process is killed.
STOP_GRACE_S = 5.0
#: Seconds that a restart waits before the next worker if a worker's port was closed meanwhile: proxies avoid
#: a worker for 2 s after refused connections (fail_timeout in deploy/nginx).
PROXY_RETURN_S = 3.0
#: The longest wait of the loop for an event. Windows runs signal handlers between its waits.
TICK_S = 0.5


class Process(Protocol):
    """The supervisor's view of a started process; `process.Child` is one."""

    pid: int

    def wait(self) -> int: ...
    def ask_to_stop(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(eq=False)
class Watched:
    """A process in the supervisor's state."""

    spec: ProcessSpec
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    faults: Faults = field(default_factory=Faults)
    process: Process | None = None
    state: str = "waiting"  # waiting, starting, ready, hung, restarting, stopping, stopped, given up
    restarts: int = 0
    started: float | None = None
    ready_since: float | None = None
    restart_at: float | None = None
    kill_at: float | None = None
    last_end: str | None = None
    listener: socket.socket | None = None
    liveness: Liveness | None = None
    killed_for: str | None = None


class Report(NamedTuple):
    """A process in an operator's report."""

    name: str
    pid: int | None
    host: str
    port: int
    state: str
    uptime_s: float | None
    restarts: int
    """Starts after the first, requested or not."""

    last_end: str | None
    """The cause of its last end, such as "signal 9"."""

    log: str


#: A condition that an operation waits for.
Condition = Callable[[], bool]


@dataclass
class _Operation:
    """An operator's request that takes time; `steps` gives the conditions that it waits for."""

    steps: Iterator[Condition]
    done: Future[None]
    until: Condition | None = None


class _Ended(NamedTuple):
    watched: Watched
    process: Process
    code: int


class _Ready(NamedTuple):
    watched: Watched
    process: Process


class _Asked(NamedTuple):
    """The result of a liveness check."""

    watched: Watched
    process: Process
    answered: bool
    waited_s: float


class _Call(NamedTuple):
    """A function that the loop runs at once, whatever operation is under way."""

    do: Callable[[], Any]
    done: Future[Any]


class _Stop(NamedTuple):
    pass


_Event = _Ended | _Ready | _Asked | _Call | _Operation | _Stop


class Supervisor:
    """Runs processes in stages: each stage starts when all of the one before are ready.

    `on_ready` is called once, when everything runs. `drain_s`: seconds for a process to finish its work.
    `more(n)` gives the nth process of the last stage from its next start on, from 1. `check(spec, held)`
    raises if one cannot listen on a new port, `held` being the stage's own. `rotate` keeps a log file short.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[ProcessSpec]],
        *,
        on_ready: Callable[[list[Watched]], None],
        drain_s: float,
        stuck_s: float = float("inf"),
        more: Callable[[int], ProcessSpec] | None = None,
        check: Callable[[ProcessSpec, Collection[int]], None] = lambda spec, held: None,
        rotate: Callable[[Path], None] = lambda log: None,
        start: Callable[[ProcessSpec, socket.socket | None], Process] = Child,
        hold: Callable[[str, int], socket.socket | None] = held_port.hold,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages = [[Watched(spec) for spec in stage] for stage in stages]
        self._on_ready = on_ready
        self._stop_s = drain_s + STOP_GRACE_S
        self._stuck_s = stuck_s
        self._more = more
        self._check = check
        self._rotate = rotate
        self._start_process = start
        self._hold = hold
        self._clock = clock
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._operations: deque[_Operation] = deque()
        self._stopping = threading.Event()

    @property
    def watched(self) -> list[Watched]:
        """All processes, in the order of their starts."""
        return [watched for stage in self._stages for watched in stage]

    def stop(self) -> None:
        """Make the loop stop everything. May be called from a signal handler or another thread."""
        self._events.put(_Stop())

    def report(self) -> Future[list[Report]]:
        """The state of every process, from the loop."""
        return self._in_loop(lambda: [self._reported(watched) for watched in self.watched])

    def restart(self, names: Sequence[str] | None = None) -> Future[None]:
        """Stop and start processes, one after another: each is ready before the next one stops.

        None: all of the last stage. A process with a new port is ready there before it leaves the old one.
        Raises SupervisorError for an unknown name, and if one does not become ready again; those after it are
        left as they are. Raises what `check` does, before anything stops.
        """
        return self._ask_for(self._restart_in_turn(names))

    def scale(self, count: int) -> Future[None]:
        """Run `count` processes in the last stage: start the next numbers, or stop the highest.

        Raises the error that keeps one from starting, which then leaves the stage.
        """
        return self._ask_for(self._scale_to(count))

    def run(self) -> None:
        """Start everything, keep it running until `stop()`, then stop it.

        Raises SupervisorError if something does not start, or every process was given up; all processes are
        stopped then.
        """
        try:
            for stage in self._stages:
                if not self._start_stage(stage):
                    return
            self._on_ready(self.watched)
            self._keep_running()
        finally:
            self._stop_everything()

    def _in_loop(self, do: Callable[[], Any]) -> Future[Any]:
        call = _Call(do, Future())
        self._events.put(call)
        return call.done

    def _ask_for(self, steps: Iterator[Condition]) -> Future[None]:
        operation = _Operation(steps, Future())
        self._events.put(operation)
        return operation.done

    def _start_stage(self, stage: list[Watched]) -> bool:
        """Start a stage and wait until it is ready; False if a stop was requested meanwhile."""
        deadline = self._clock() + READY_S
        for watched in stage:
            self._start(watched)
        while any(watched.state != "ready" for watched in stage):
            event = self._next_event(deadline)
            if isinstance(event, _Stop):
                return False
            if isinstance(event, _Ended) and event.watched in stage:
                event.watched.process = None
                raise SupervisorError(_did_not_start(event))
            if event is None and self._clock() >= deadline:
                late = ", ".join(watched.spec.name for watched in stage if watched.state != "ready")
                raise SupervisorError(
                    f"not ready after {READY_S:g} s: {late}; see {stage[0].spec.log.parent}"
                )
            self._handle(event)
            self._do_what_is_due()
        return True

    def _keep_running(self) -> None:
        while True:
            event = self._next_event(None)
            if isinstance(event, _Stop):
                return
            self._handle(event)
            self._do_what_is_due()
            self._advance()

    def _next_event(self, until: float | None) -> _Event | None:
        """The next event; None when an action may be due."""
        moments = [moment for one in self.watched for moment in (one.restart_at, one.kill_at)]
        left = [moment - self._clock() for moment in (until, *moments) if moment is not None]
        try:
            return self._events.get(timeout=max(0.0, min(TICK_S, *left)) if left else TICK_S)
        except queue.Empty:
            return None

    def _handle(self, event: _Event | None) -> None:
        if isinstance(event, _Ready):
            self._note_ready(event)
        elif isinstance(event, _Asked):
            self._note_answer(event)
        elif isinstance(event, _Ended):
            self._ended(event)
        elif isinstance(event, _Call):
            event.done.set_result(event.do())
        elif isinstance(event, _Operation):
            self._operations.append(event)

    def _advance(self) -> None:
        """Advance the first operation while its conditions hold, then the next."""
        while self._operations:
            operation = self._operations[0]
            if operation.until is not None and not operation.until():
                return
            try:
                operation.until = next(operation.steps)
            except StopIteration:
                self._operations.popleft().done.set_result(None)
            except EmbedshareError as error:
                self._operations.popleft().done.set_exception(error)

    def _restart_in_turn(self, names: Sequence[str] | None) -> Iterator[Condition]:
        chosen = [self._named(name) for name in names] if names is not None else list(self._stages[-1])
        turns = [(watched, self._next_spec(watched)) for watched in chosen]
        held = {watched.spec.port for watched in self._stages[-1]}
        for watched, spec in turns:
            if spec.address != watched.spec.address:
                self._check(spec, held)
        if any(spec.port > watched.spec.port for watched, spec in turns):
            turns.reverse()  # where old and new ports overlap, a port has been left when its next user comes
        for watched, spec in turns:
            logger.info("Restarting {} (requested)", spec.name)
            if spec.port != watched.spec.port:
                yield from self._move(watched, spec)
                continue
            same_host = spec.host == watched.spec.host  # two overlapping addresses cannot share a port
            stays_open = same_host and watched.listener is not None
            if spec.keeps_port and not stays_open and watched is not turns[0][0]:
                yield self._after(PROXY_RETURN_S)
            yield self._begin_to_stop(watched, keeps_port=same_host)
            watched.spec, watched.policy, watched.restarts = spec, RestartPolicy(), watched.restarts + 1
            self._start(watched)
            yield self._has_started(watched)
            if watched.state != "ready":
                raise _did_not_return(watched)

    def _next_spec(self, watched: Watched) -> ProcessSpec:
        stage = self._stages[-1]
        if self._more is None or watched not in stage:
            return watched.spec
        return self._more(stage.index(watched) + 1)

    def _move(self, old: Watched, spec: ProcessSpec) -> Iterator[Condition]:
        """Start a process at its new port, then stop it at the old one.

        Proxies need PROXY_RETURN_S to retry a port that refused them.
        """
        stage = self._stages[-1]
        new = Watched(spec, restarts=old.restarts + 1, last_end=old.last_end)
        self._start(new)
        stage.insert(stage.index(old), new)
        yield self._has_started(new)
        failure = None if new.state == "ready" else _did_not_return(new)
        if failure is None:
            yield self._after(PROXY_RETURN_S)
        leaving = old if failure is None else new
        yield self._begin_to_stop(leaving)
        stage.remove(leaving)
        if failure is not None:
            raise failure

    def _scale_to(self, count: int) -> Iterator[Condition]:
        stage = self._stages[-1]
        if self._more is None:
            raise SupervisorError("this stage cannot be scaled")
        added = []
        while len(stage) < count:
            watched = Watched(self._more(len(stage) + 1))
            self._check(watched.spec, ())
            self._start(watched)
            stage.append(watched)
            added.append(watched)
        for watched in added:
            yield self._has_started(watched)
        bad = next((watched for watched in added if watched.state != "ready"), None)
        kept = stage.index(bad) if bad is not None else count
        leaving = stage[kept:]
        yield from [self._begin_to_stop(watched) for watched in leaving]  # all at once
        del stage[kept:]
        if bad is not None:
            raise SupervisorError(
                f"{bad.spec.name} did not become ready; {len(stage)} run. See {bad.spec.log}"
            )

    def _named(self, name: str) -> Watched:
        for watched in self.watched:
            if watched.spec.name == name:
                return watched
        there = ", ".join(watched.spec.name for watched in self.watched)
        raise SupervisorError(f"there is no process {name!r}; there are {there}")

    def _after(self, seconds: float) -> Condition:
        limit = self._clock() + seconds
        return lambda: self._clock() >= limit

    def _begin_to_stop(self, watched: Watched, *, keeps_port: bool = False) -> Condition:
        """Ask a process to stop, and do not restart it; true when it has ended."""
        watched.restart_at = None
        if not keeps_port:
            _release_port(watched)
        if watched.process is None:
            watched.state = "stopped"
        else:
            limit_s = STOP_GRACE_S if watched.state == "hung" else self._stop_s
            watched.state, watched.kill_at = "stopping", self._clock() + limit_s
            watched.process.ask_to_stop()
        return lambda: watched.process is None

    def _has_started(self, watched: Watched) -> Condition:
        limit = self._clock() + READY_S
        return lambda: watched.state != "starting" or self._clock() >= limit

    def _reported(self, watched: Watched) -> Report:
        process, started = watched.process, watched.started
        return Report(
            watched.spec.name,
            process.pid if process is not None else None,
            watched.spec.host,
            watched.spec.port,
            watched.state,
            self._clock() - started if process is not None and started is not None else None,
            watched.restarts,
            watched.last_end,
            str(watched.spec.log),
        )

    def _start(self, watched: Watched) -> None:
        spec = watched.spec
        if spec.keeps_port and watched.listener is None:
            watched.listener = self._hold(spec.host, spec.port)
        try:
            watched.process = process = self._start_process(spec, watched.listener)
        except OSError as error:
            _release_port(watched)
            raise SupervisorError(f"{watched.spec.name} cannot be started: {error}") from None
        watched.state, watched.restart_at, watched.ready_since = "starting", None, None
        watched.started, watched.kill_at, watched.killed_for = self._clock(), None, None
        watched.liveness = Liveness(self._stuck_s)
        where = f", port {spec.port}" if spec.port else ""
        logger.info("Starting {}, pid {}{}", spec.name, process.pid, where)
        name = watched.spec.name
        threading.Thread(
            target=lambda: self._events.put(_Ended(watched, process, process.wait())),
            name=f"{name}-end",
            daemon=True,
        ).start()
        threading.Thread(
            target=self._follow, args=(watched, process), name=f"{name}-answers", daemon=True
        ).start()

    def _follow(self, watched: Watched, process: Process) -> None:
        """Check whether a process is ready, and then whether it is alive, as long as it runs."""
        self._ask_until_ready(watched, process)
        while watched.process is process and not self._stopping.wait(liveness.ASK_EVERY_S):
            lives, began = watched.spec.lives, self._clock()
            if lives is None or watched.state == "stopping":
                return
            try:
                answered = lives()
            except Exception as error:  # an error of the check must not kill a process
                logger.opt(exception=error).warning("Could not ask {} whether it lives", watched.spec.name)
                answered = True
            self._events.put(_Asked(watched, process, answered, self._clock() - began))

    def _ask_until_ready(self, watched: Watched, process: Process) -> None:
        said = ""
        while watched.process is process and not self._stopping.wait(READY_EVERY_S):
            try:
                ready = watched.spec.ready()
            except Exception as error:  # an error of the check: not ready, check again
                ready = False
                if str(error) != said:
                    said = str(error)
                    logger.warning("Could not check whether {} is ready: {}", watched.spec.name, said)
            if ready:
                self._events.put(_Ready(watched, process))
                return

    def _note_ready(self, event: _Ready) -> None:
        if event.watched.process is event.process and event.watched.state == "starting":
            event.watched.state, event.watched.ready_since = "ready", self._clock()
            logger.info("Ready: {}, pid {}", event.watched.spec.name, event.process.pid)

    def _note_answer(self, event: _Asked) -> None:
        watched, known = event.watched, event.watched.liveness
        if watched.process is not event.process or watched.state not in ("ready", "hung") or known is None:
            return
        known.note(event.answered, event.waited_s)
        if known.is_hung and watched.state == "ready":
            watched.state = "hung"
            silent_s = known.silent_s
            pid = event.process.pid
            logger.warning("Got no answer from {} for {:.0f} s, pid {}", watched.spec.name, silent_s, pid)
        elif not known.is_hung and watched.state == "hung":
            watched.state = "ready"
            logger.info("Got an answer from {} again, pid {}", watched.spec.name, event.process.pid)
        if known.is_stuck and watched.killed_for is None:
            watched.killed_for = f"it had not answered for {known.silent_s:.0f} s"
            logger.error("Killing {}: {} (EMBEDDING_STUCK_S)", watched.spec.name, watched.killed_for)
            event.process.kill()

    def _ended(self, event: _Ended) -> None:
        watched = event.watched
        if watched.process is not event.process:
            return
        watched.process, watched.kill_at, watched.last_end = None, None, _how(event.code)
        if watched.killed_for is not None:
            watched.last_end += f", {watched.killed_for}"
        if watched.state == "stopping":
            watched.state = "stopped"
            logger.info("Stopped {} ({})", watched.spec.name, watched.last_end)
        else:
            _release_port(watched)  # an unplanned end: callers are refused and try another worker
            self._note_fault(watched, event.code)
            self._plan_restart(watched, f"{watched.spec.name} ended ({watched.last_end})")

    def _note_fault(self, watched: Watched, code: int) -> None:
        if platforms.ended_by_fault(code) and watched.faults.note(self._clock()):
            advice = f"; {watched.spec.advice()}" if watched.spec.advice is not None else ""
            how = platforms.how_ended(code)
            logger.error("Saw {} end by a fault {} times ({}){}", watched.spec.name, FAULTS, how, advice)

    def _plan_restart(self, watched: Watched, what: str) -> None:
        since, watched.ready_since = watched.ready_since, None
        pause_s = watched.policy.restart_in(None if since is None else self._clock() - since)
        said = " ".join(last_lines(watched.spec.log, 1))
        if pause_s is None:
            watched.state, watched.restart_at = "given up", None
            last = "\n".join(last_lines(watched.spec.log))
            logger.error("Giving up ({}, again and again); {} ends with:\n{}", what, watched.spec.log, last)
            if all(other.state == "given up" for other in self.watched):
                raise SupervisorError("every process was given up")
            return
        watched.state, watched.restart_at = "restarting", self._clock() + pause_s
        logger.warning("Restarting in {1:g} s ({0}); it last said: {2}", what, pause_s, said)

    def _do_what_is_due(self) -> None:
        for watched in self.watched:
            self._rotate(watched.spec.log)
            if watched.restart_at is not None and watched.restart_at <= self._clock():
                watched.restarts += 1
                try:
                    self._start(watched)
                except SupervisorError as error:
                    self._plan_restart(watched, error.message)
            if watched.kill_at is not None and watched.kill_at <= self._clock():
                self._kill(watched)

    def _kill(self, watched: Watched) -> None:
        watched.kill_at = None
        if watched.process is not None:
            logger.warning("Killing {} (it did not stop in {:g} s)", watched.spec.name, self._stop_s)
            watched.process.kill()

    def _stop_everything(self) -> None:
        """Stop the last stage first, so that a process outlives its dependents."""
        self._stopping.set()
        for operation in self._operations:
            operation.done.set_exception(_STOPPING)
        self._operations.clear()
        for stage in reversed(self._stages):
            for watched in stage:
                self._begin_to_stop(watched)
            self._wait_for_ends(stage, self._stop_s)
            for watched in stage:
                self._kill(watched)
            self._wait_for_ends(stage, STOP_GRACE_S)

    def _wait_for_ends(self, stage: list[Watched], limit_s: float) -> None:
        limit = self._clock() + limit_s
        while any(watched.process is not None for watched in stage):
            left = limit - self._clock()
            if left <= 0:
                return
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(event, _Operation):
                event.done.set_exception(_STOPPING)
            else:
                self._handle(event)


_STOPPING = SupervisorError("the supervisor stops everything")


def _release_port(watched: Watched) -> None:
    """Close the supervisor's socket of a process's port."""
    if watched.listener is not None:
        watched.listener.close()
        watched.listener = None


def _did_not_return(watched: Watched) -> SupervisorError:
    spec = watched.spec
    return SupervisorError(
        f"{spec.name} did not become ready again at {spec.host}:{spec.port}, it is {watched.state}; what was "
        f"to be restarted after it was left as it is; see {spec.log}"
    )


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _did_not_start(event: _Ended) -> str:
    spec = event.watched.spec
    said = "\n".join(last_lines(spec.log))
    advice = ""
    if spec.advice is not None and platforms.ended_by_fault(event.code):
        advice = f"; {spec.advice()}"
    return f"{spec.name} did not start ({_how(event.code)}){advice}; its log, {spec.log}, ends with:\n{said}"
