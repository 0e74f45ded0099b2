"""The supervisor with fake processes and a clock that the test moves."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from loguru import logger

from embedshare.errors import PortUnavailable, SupervisorError
from embedshare.supervise import liveness
from embedshare.supervise import supervisor as module
from embedshare.supervise.process import ProcessSpec
from embedshare.supervise.restart_policy import CRASH_LOOP, PAUSES
from embedshare.supervise.supervisor import Supervisor, Watched
from tests.processes import wait_for

LIMIT_S = 10.0


class FakeProcess:
    """A process that ends on request; a `stubborn` one ends only by a kill."""

    def __init__(self, world: World, name: str, pid: int, port: int) -> None:
        self.world, self.name, self.pid, self.port = world, name, pid, port
        self._end: queue.SimpleQueue[int] = queue.SimpleQueue()

    def end(self, code: int) -> None:
        self._end.put(code)

    def wait(self) -> int:
        code = self._end.get()
        self.world.running.discard(self)
        self.world.story.append(f"{self.name} ended")
        return code

    def ask_to_stop(self) -> None:
        self.world.story.append(f"{self.name} asked")
        if self.name not in self.world.stubborn:
            self.end(0)

    def kill(self) -> None:
        self.world.story.append(f"{self.name} killed")
        self.end(-9)


class FakeListener(socket.socket):
    """A port that the supervisor keeps open, as `World.open_ports` shows."""

    def __init__(self, world: World, port: int) -> None:
        super().__init__()
        self.world, self.port = world, port

    def close(self) -> None:
        super().close()
        self.world.open_ports.pop(self.port, None)


class World:
    """Fake processes, their readiness and the time; `story` lists the events in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1000.0
        self.story: list[str] = []
        self.running: set[FakeProcess] = set()
        self.stubborn: set[str] = set()
        self.missing: set[str] = set()
        self.not_ready: set[str] = set()
        self.keep_ports = False
        self.host, self.first_port = "127.0.0.1", 5000
        self.taken: set[int] = set()
        self.open_ports: dict[int, FakeListener] = {}
        self.asks = self.broken = False
        self.silent: set[str] = set()
        self.asking_s = liveness.ANSWER_S
        self.asked = 0
        self.misses = float("inf")
        self.all_ready = threading.Event()
        self.error: BaseException | None = None

    def spec(self, name: str) -> ProcessSpec:
        log = self.folder / f"{name}.log"
        keeps_port = self.keep_ports and name.startswith("web")
        port = self.first_port + int(name.removeprefix("web")) if keeps_port else 5000
        return ProcessSpec(
            name, [name], self.host, port, log, lambda: name not in self.not_ready,
            keeps_port=keeps_port, lives=(lambda: self.lives(name)) if self.asks else None,
            advice=lambda: f"{name} serves a model",
        )  # fmt: skip

    def lives(self, name: str) -> bool:
        self.asked += 1
        while name in self.silent and not self.misses:
            time.sleep(0.005)  # the test's number of probes has failed
        if name not in self.silent:
            return True
        self.misses -= 1
        if self.broken:
            raise ValueError("the question is wrong")
        self.now += self.asking_s
        return False

    def hold(self, host: str, port: int) -> FakeListener:
        assert port not in self.open_ports
        self.open_ports[port] = FakeListener(self, port)
        return self.open_ports[port]

    def more(self, number: int) -> ProcessSpec:
        if number > 5:
            raise PortUnavailable(f"port {5000 + number} is taken")
        return self.spec(f"web{number}")

    def check(self, spec: ProcessSpec, held: Collection[int]) -> None:
        if spec.port in self.taken - set(held):
            raise PortUnavailable(f"port {spec.port} is taken")

    def start(self, spec: ProcessSpec, listener: socket.socket | None) -> FakeProcess:
        if spec.name in self.missing:
            raise FileNotFoundError(2, "No such file or directory", spec.name)
        assert listener is self.open_ports.get(spec.port) if spec.keeps_port else listener is None
        self.story.append(f"{spec.name} started")
        process = FakeProcess(self, spec.name, 100 + len(self.story), spec.port)
        self.running.add(process)
        return process

    def supervise(self, *stages: tuple[str, ...], drain_s: float = 0.0) -> Supervisor:
        def on_ready(watched: list[Watched]) -> None:
            self.story.append("all ready: " + " ".join(one.spec.name for one in watched))
            self.all_ready.set()

        self.supervisor = Supervisor(
            [[self.spec(name) for name in stage] for stage in stages],
            on_ready=on_ready, drain_s=drain_s, stuck_s=9.0, more=self.more, check=self.check,
            start=self.start, hold=self.hold, clock=lambda: self.now,
        )  # fmt: skip

        def run() -> None:
            try:
                self.supervisor.run()
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        return self.supervisor

    def supervise_until_ready(self, *stages: tuple[str, ...], drain_s: float = 0.0) -> None:
        self.supervise(*stages, drain_s=drain_s)
        assert self.all_ready.wait(LIMIT_S), self.story

    def process(self, name: str) -> FakeProcess:
        (found,) = (process for process in self.running if process.name == name)
        return found

    def watched(self, name: str) -> Watched:
        (found,) = (one for one in self.supervisor.watched if one.spec.name == name)
        return found

    def becomes(self, name: str, state: str) -> Watched:
        wait_for(lambda: self.watched(name).state == state, LIMIT_S, f"{name} {state}: {self.story}")
        return self.watched(name)

    def becomes_ready(self, name: str, port: int) -> None:
        """Wait until the process is ready at this port; its predecessor may still serve at the old port."""

        def ready() -> bool:
            there = [each for each in self.supervisor.watched if each.spec.port == port]
            return [(each.spec.name, each.state) for each in there] == [(name, "ready")]

        wait_for(ready, LIMIT_S, f"{name} at {port}: {self.story}")

    def pass_event(self, watched: Watched, process: FakeProcess) -> None:
        """Send the loop the readiness of another process, and wait until the loop has handled it."""
        for _ in range(2):  # the loop takes the second event when the first is handled
            self.supervisor._events.put(module._Ready(watched, process))
        wait_for(self.supervisor._events.empty, LIMIT_S)

    def finish(self, stop: bool = True) -> BaseException | None:
        """Return the error that `run` raised; fail if a process still runs."""
        if stop:
            self.supervisor.stop()
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()
        assert self.running == set()
        return self.error


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(module, "STOP_GRACE_S", 0.2)
    monkeypatch.setattr(module, "READY_EVERY_S", 0.01)
    world = World(tmp_path)
    yield world
    world.stubborn.clear()
    world.supervisor.stop()
    world.thread.join(LIMIT_S)


def test_a_stage_starts_when_all_of_the_one_before_are_ready(world: World) -> None:
    world.not_ready = {"model", "second"}
    world.supervise(("model", "other"), ("web1", "web2"), ("second",))
    world.becomes("other", "ready")
    assert world.story == ["model started", "other started"]
    world.not_ready.discard("model")
    world.becomes("web2", "ready")
    assert not world.all_ready.is_set()
    world.not_ready.clear()
    assert world.all_ready.wait(LIMIT_S)
    assert world.story[2:] == [
        "web1 started", "web2 started", "second started", "all ready: model other web1 web2 second",
    ]  # fmt: skip
    assert world.finish() is None


def test_stop_ends_the_last_stage_first(world: World) -> None:
    world.supervise_until_ready(("model",), ("web1", "web2"))
    assert world.finish() is None
    ends = [line for line in world.story if line.endswith(("asked", "ended"))]
    assert ends[:2] == ["web1 asked", "web2 asked"]
    assert sorted(ends[2:4]) == ["web1 ended", "web2 ended"]
    assert ends[4:] == ["model asked", "model ended"]
    assert {watched.state for watched in world.supervisor.watched} == {"stopped"}


def test_a_process_that_ends_before_it_is_ready_fails_the_start_with_its_last_words(world: World) -> None:
    (world.folder / "web.log").write_text(
        "".join(f"line {n}\n" for n in range(30)) + "no module named flask\n"
    )
    world.not_ready = {"web"}
    world.supervise(("model",), ("web", "web2"), ("never",))
    world.becomes("web", "starting")
    world.process("web").end(3)
    error = world.finish(stop=False)
    assert isinstance(error, SupervisorError)
    assert error.message.startswith("web did not start (exit code 3)")
    assert error.message.splitlines()[-1] == "no module named flask"
    assert error.message.splitlines()[1] == "line 21"
    assert "model asked" in world.story
    assert not world.all_ready.is_set()
    assert "never started" not in world.story


def test_a_program_that_cannot_be_started_fails_the_start_and_stops_the_rest(world: World) -> None:
    world.missing = {"web"}
    world.supervise(("model",), ("web",))
    error = world.finish(stop=False)
    assert isinstance(error, SupervisorError)
    assert "web" in error.message
    assert world.story[-1] == "model ended"


def test_what_is_not_ready_in_time_fails_the_start(world: World) -> None:
    world.not_ready = {"slow"}
    world.supervise(("slow", "quick"))
    world.becomes("quick", "ready")
    world.now += module.READY_S
    error = world.finish(stop=False)
    assert isinstance(error, SupervisorError)
    assert "not ready after 600 s: slow;" in error.message


def test_a_stop_during_the_start_stops_what_was_started(world: World) -> None:
    world.not_ready = {"model"}
    world.supervise(("model",), ("web",))
    world.becomes("model", "starting")
    assert world.finish() is None
    assert world.story == ["model started", "model asked", "model ended"]


def test_what_ends_is_started_again_after_its_pause_and_not_before(world: World) -> None:
    world.supervise_until_ready(("model",), ("web",))
    for restarts, pause_s in enumerate([0.2, 0.4, 0.8], 1):
        world.process("web").end(1)
        watched = world.becomes("web", "restarting")
        assert watched.restart_at == pytest.approx(world.now + pause_s)
        world.now += pause_s * 0.9
        world.pass_event(watched, world.process("model"))
        assert watched.process is None
        world.now = watched.restart_at or 0.0
        world.becomes("web", "ready")
        assert watched.restarts == restarts
    assert world.story.count("web started") == 4
    assert world.story.count("model started") == 1
    assert world.finish() is None


def test_what_was_ready_for_a_while_is_started_again_at_once_however_often(world: World) -> None:
    world.supervise_until_ready(("model",), ("web",))
    for _ in range(3 * CRASH_LOOP):
        world.now += 3.0
        world.process("web").end(-9)
        watched = world.becomes("web", "restarting")
        assert watched.restart_at == pytest.approx(world.now + PAUSES.first_s)
        world.now = watched.restart_at or 0.0
        world.becomes("web", "ready")
    assert world.finish() is None


def test_a_crash_loop_is_given_up_while_the_others_stay(world: World) -> None:
    world.supervise_until_ready(("model",), ("web", "sick"))
    for _ in range(CRASH_LOOP - 1):
        world.process("sick").end(-11)
        world.now = world.becomes("sick", "restarting").restart_at or 0.0
        world.becomes("sick", "ready")
    world.process("sick").end(-11)
    assert world.becomes("sick", "given up").process is None
    assert world.watched("sick").restart_at is None
    world.now += 10_000
    world.process("web").end(1)  # the loop continues for the others
    world.now = world.becomes("web", "restarting").restart_at or 0.0
    world.becomes("web", "ready")
    assert world.watched("model").state == "ready"
    assert world.story.count("sick started") == CRASH_LOOP
    assert world.finish() is None


def test_when_nothing_is_left_to_run_the_supervisor_says_so(world: World) -> None:
    world.supervise_until_ready(("only",))
    for _ in range(CRASH_LOOP - 1):
        world.process("only").end(1)
        world.now = world.becomes("only", "restarting").restart_at or 0.0
        world.becomes("only", "ready")
    world.process("only").end(1)
    error = world.finish(stop=False)
    assert isinstance(error, SupervisorError)
    assert "every process was given up" in error.message


def test_a_restart_that_cannot_be_started_is_tried_again_and_takes_nothing_down(world: World) -> None:
    world.supervise_until_ready(("model",), ("web",))
    world.missing = {"web"}
    world.process("web").end(1)
    world.now = first = world.becomes("web", "restarting").restart_at or 0.0
    wait_for(lambda: world.error or (world.watched("web").restart_at or 0.0) > first, LIMIT_S)
    assert world.error is None
    assert world.watched("web").policy.failed_starts == 2
    world.missing.clear()
    world.now = world.watched("web").restart_at or 0.0
    world.becomes("web", "ready")
    assert world.finish() is None


def test_a_process_that_ignores_the_request_is_killed_and_the_rest_stops_in_order(world: World) -> None:
    world.stubborn = {"web1"}
    world.supervise_until_ready(("model",), ("web1", "web2"))
    assert world.finish() is None
    asked = world.story.index("web1 asked")
    tail = world.story[asked:]
    assert tail.index("web2 ended") < tail.index("web1 killed") < tail.index("model asked")
    assert "web2 killed" not in tail


def test_a_process_of_an_earlier_stage_that_ends_during_the_start_comes_back(world: World) -> None:
    world.not_ready = {"web"}
    world.supervise(("model",), ("web",))
    world.becomes("web", "starting")
    world.process("model").end(1)
    world.now = world.becomes("model", "restarting").restart_at or 0.0
    world.becomes("model", "ready")
    world.not_ready.clear()
    assert world.all_ready.wait(LIMIT_S)
    assert world.finish() is None


def test_a_late_readiness_of_a_process_that_has_ended_does_not_count(world: World) -> None:
    world.supervise_until_ready(("model",))
    first = world.process("model")
    world.not_ready = {"model"}
    first.end(1)
    world.now = world.becomes("model", "restarting").restart_at or 0.0
    watched = world.becomes("model", "starting")
    world.pass_event(watched, first)
    assert watched.state == "starting"
    assert world.finish() is None


def test_a_restart_goes_on_to_the_next_when_the_one_before_is_ready(world: World) -> None:
    world.supervise_until_ready(("model",), ("web1", "web2", "web3"))
    world.story.clear()
    world.supervisor.restart().result(LIMIT_S)
    each = [[f"web{n} asked", f"web{n} ended", f"web{n} started"] for n in (1, 2, 3)]
    assert world.story == [line for lines in each for line in lines]
    assert [report.restarts for report in world.supervisor.report().result(LIMIT_S)] == [0, 1, 1, 1]
    assert world.finish() is None


def test_a_named_process_is_restarted_and_one_that_is_not_there_is_refused(world: World) -> None:
    world.supervise_until_ready(("model",), ("web1", "web2"))
    world.story.clear()
    world.supervisor.restart(["model"]).result(LIMIT_S)
    assert world.story == ["model asked", "model ended", "model started"]
    with pytest.raises(SupervisorError, match="no process 'web9'; there are model, web1, web2"):
        world.supervisor.restart(["web1", "web9"]).result(LIMIT_S)
    assert "web1 asked" not in world.story
    assert world.finish() is None


def test_a_restart_that_fails_leaves_the_next_as_they_are(world: World) -> None:
    world.supervise_until_ready(("model",), ("web1", "web2"))
    world.not_ready = {"web1"}
    restarted = world.supervisor.restart()
    wait_for(lambda: world.watched("web1").restarts == 1, LIMIT_S)
    world.process("web1").end(3)
    with pytest.raises(
        SupervisorError, match=r"web1 did not become ready again at 127\.0\.0\.1:5000, it is restarting"
    ):
        restarted.result(LIMIT_S)
    assert "web2 asked" not in world.story
    assert world.finish() is None


def test_a_process_that_was_given_up_comes_back_when_it_is_asked_for(world: World) -> None:
    world.supervise_until_ready(("model",), ("web1", "web2"))
    for _ in range(CRASH_LOOP - 1):
        world.process("web1").end(1)
        world.now = world.becomes("web1", "restarting").restart_at or 0.0
        world.becomes("web1", "ready")
    world.process("web1").end(1)
    world.becomes("web1", "given up")
    world.supervisor.restart(["web1"]).result(LIMIT_S)
    assert world.watched("web1").state == "ready"
    assert world.finish() is None


def test_one_that_ignores_a_restart_is_killed_and_started(world: World) -> None:
    world.supervise_until_ready(("model",), ("web1",))
    world.stubborn = {"web1"}
    restarted = world.supervisor.restart()
    world.becomes("web1", "stopping")
    world.now += 1.0
    restarted.result(LIMIT_S)
    assert world.story[-4:] == ["web1 asked", "web1 killed", "web1 ended", "web1 started"]
    world.stubborn.clear()
    assert world.finish() is None


def test_scaling_starts_the_next_numbers_and_stops_the_highest(world: World) -> None:
    world.supervise_until_ready(("model",), ("web1",))
    world.supervisor.scale(3).result(LIMIT_S)
    assert [watched.spec.name for watched in world.supervisor.watched] == ["model", "web1", "web2", "web3"]
    world.story.clear()
    world.supervisor.scale(1).result(LIMIT_S)
    assert world.story[:2] == ["web2 asked", "web3 asked"]
    assert [report.name for report in world.supervisor.report().result(LIMIT_S)] == ["model", "web1"]
    world.now += 100
    world.pass_event(world.watched("web1"), world.process("model"))
    assert {process.name for process in world.running} == {"model", "web1"}
    assert world.finish() is None


def test_what_cannot_be_started_is_not_part_of_the_stage(world: World) -> None:
    world.supervise_until_ready(("model",), ("web1", "web2"))
    world.not_ready = {"web4"}
    scaled = world.supervisor.scale(4)
    wait_for(lambda: any(process.name == "web4" for process in world.running), LIMIT_S)
    world.process("web4").end(1)
    with pytest.raises(SupervisorError, match="web4 did not become ready; 3 run"):
        scaled.result(LIMIT_S)
    with pytest.raises(PortUnavailable):
        world.supervisor.scale(6).result(LIMIT_S)
    names = [report.name for report in world.supervisor.report().result(LIMIT_S)]
    assert names[:4] == ["model", "web1", "web2", "web3"]
    assert world.finish() is None


def test_what_was_asked_for_is_done_in_turn_and_ends_with_a_stop(world: World) -> None:
    world.supervise_until_ready(("model",), ("web1",))
    world.not_ready = {"web1"}
    first, second = world.supervisor.restart(), world.supervisor.scale(2)
    wait_for(lambda: world.watched("web1").restarts == 1, LIMIT_S)
    assert "web2 started" not in world.story
    world.supervisor.stop()
    for asked in (first, second):
        with pytest.raises(SupervisorError, match="stops everything"):
            asked.result(LIMIT_S)
    assert world.finish() is None


def test_a_report_tells_pid_state_uptime_and_how_it_last_ended(world: World) -> None:
    world.supervise_until_ready(("model",), ("web1",))
    world.process("web1").end(-9)
    world.now = world.becomes("web1", "restarting").restart_at or 0.0
    world.becomes("web1", "ready")
    world.now += 12.5
    model, web = world.supervisor.report().result(LIMIT_S)
    assert (model.name, model.restarts, model.last_end) == ("model", 0, None)
    where = (world.process("web1").pid, "127.0.0.1", 5000)
    assert web[1:8] == (*where, "ready", 12.5, 1, "signal 9")
    assert world.finish() is None


def test_a_port_stays_open_through_a_restart_and_no_longer_than_its_worker_otherwise(world: World) -> None:
    world.keep_ports = True
    world.supervise_until_ready(("model",), ("web1", "web2"))
    assert set(world.open_ports) == {5001, 5002}
    first = world.open_ports[5001]
    world.stubborn = {"web1"}
    restarted = world.supervisor.restart(["web1"])
    world.becomes("web1", "stopping")
    assert world.open_ports[5001] is first
    world.process("web1").end(0)
    restarted.result(LIMIT_S)
    assert world.open_ports[5001] is first
    world.stubborn.clear()
    world.process("web1").end(-9)  # while it is down, callers are refused and use another worker
    watched = world.becomes("web1", "restarting")
    assert set(world.open_ports) == {5002}
    world.now = watched.restart_at or 0.0
    world.becomes("web1", "ready")
    assert set(world.open_ports) == {5001, 5002}
    world.supervisor.scale(1).result(LIMIT_S)
    assert set(world.open_ports) == {5001}
    assert world.finish() is None


def test_workers_with_other_ports_are_ready_there_before_they_leave_the_old_ones(world: World) -> None:
    world.keep_ports = True
    world.supervise_until_ready(("model",), ("web1", "web2"))
    world.story.clear()
    world.first_port = 6000
    moved = world.supervisor.restart()
    world.becomes_ready("web2", 6002)
    assert world.open_ports.keys() == {5001, 5002, 6002}
    assert world.story == ["web2 started"]  # proxies get time to find the new port
    world.now += module.PROXY_RETURN_S
    world.becomes_ready("web1", 6001)
    world.now += module.PROXY_RETURN_S
    moved.result(LIMIT_S)
    steps = ("started", "asked", "ended")
    assert world.story == [f"{name} {step}" for name in ("web2", "web1") for step in steps]
    assert world.open_ports.keys() == {6001, 6002}
    assert [(each.name, each.port, each.restarts) for each in world.supervisor.report().result(LIMIT_S)] == [
        ("model", 5000, 0), ("web1", 6001, 1), ("web2", 6002, 1)
    ]  # fmt: skip
    assert world.finish() is None


def test_where_old_and_new_ports_overlap_a_port_is_left_before_the_next_worker_takes_it(world: World) -> None:
    world.keep_ports = True
    world.supervise_until_ready(("model",), ("web1", "web2"))
    for first_port, order in ((5001, ["web2", "web1"]), (5000, ["web1", "web2"])):
        world.story.clear()
        world.first_port = first_port
        moved = world.supervisor.restart()
        for name in order:
            world.becomes_ready(name, first_port + int(name[-1]))
            world.now += module.PROXY_RETURN_S
        moved.result(LIMIT_S)
        assert [line.split()[0] for line in world.story if line.endswith("started")] == order
    assert world.finish() is None


def test_workers_stay_where_they_are_if_one_cannot_have_its_new_port(world: World) -> None:
    world.keep_ports = True
    world.supervise_until_ready(("model",), ("web1", "web2"))
    world.story.clear()
    world.first_port, world.taken = 6000, {6002}
    with pytest.raises(PortUnavailable, match="port 6002 is taken"):
        world.supervisor.restart().result(LIMIT_S)
    assert world.story == []
    world.taken, world.not_ready = set(), {"web2"}
    moved = world.supervisor.restart()
    wait_for(lambda: world.story == ["web2 started"], LIMIT_S)
    next(each for each in world.running if each.port == 6002).end(3)
    with pytest.raises(SupervisorError, match=r"web2 did not become ready again at 127\.0\.0\.1:6002"):
        moved.result(LIMIT_S)
    world.not_ready = set()
    assert world.open_ports.keys() == {5001, 5002}
    assert [each.spec.port for each in world.supervisor.watched] == [5000, 5001, 5002]
    assert world.finish() is None


def test_of_two_hosts_with_one_port_the_old_one_is_left_first(world: World) -> None:
    world.keep_ports = True
    world.supervise_until_ready(("model",), ("web1", "web2"))
    world.story.clear()
    world.host = "0.0.0.0"
    moved = world.supervisor.restart()
    for name in ("web1", "web2"):
        wait_for(lambda name=name: world.watched(name).spec.host == "0.0.0.0", LIMIT_S)
        world.becomes(name, "ready")
        world.now += module.PROXY_RETURN_S
    moved.result(LIMIT_S)
    assert world.story == [
        f"{name} {what}" for name in ("web1", "web2") for what in ("asked", "ended", "started")
    ]
    assert world.finish() is None


def test_a_worker_whose_port_cannot_be_kept_open_is_restarted_when_proxies_trust_the_last_one_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "hold", lambda host, port: None)
    world.keep_ports = True
    world.supervise_until_ready(("model",), ("web1", "web2"))
    world.story.clear()
    restarted = world.supervisor.restart()
    wait_for(lambda: "web1 started" in world.story, LIMIT_S)
    world.becomes("web1", "ready")
    world.now += module.PROXY_RETURN_S * 0.9
    world.pass_event(world.watched("web1"), world.process("web2"))
    assert "web2 asked" not in world.story
    world.now += module.PROXY_RETURN_S * 0.2
    restarted.result(LIMIT_S)
    assert world.story[-3:] == ["web2 asked", "web2 ended", "web2 started"]
    assert world.finish() is None


@pytest.fixture
def asking(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Probe each process for liveness 100 times a second.

    Processes in `world.silent` miss the next `world.misses` probes, each of `world.asking_s` seconds.
    """
    monkeypatch.setattr(liveness, "ASK_EVERY_S", 0.01)
    world.asks = True
    return world


def test_a_process_that_does_not_answer_is_hung_then_killed_and_started_again(asking: World) -> None:
    world = asking
    world.supervise_until_ready(("model",), ("web1", "web2"))
    world.misses, world.silent = 3, {"web1"}
    world.becomes("web1", "hung")
    world.silent.clear()
    world.becomes("web1", "ready")
    assert "web1 killed" not in world.story
    world.misses, world.silent = 5, {"web1"}
    wait_for(lambda: "web1 killed" in world.story, LIMIT_S)
    watched = world.becomes("web1", "restarting")
    assert (watched.last_end or "").startswith("signal 9, it had not answered for 1")
    world.silent.clear()
    world.now = (watched.restart_at or 0.0) + 1
    world.becomes("web1", "ready")
    assert world.story.count("web1 killed") == 1
    assert [world.watched(name).restarts for name in ("model", "web1", "web2")] == [0, 1, 0]
    assert world.finish() is None


def test_a_supervisor_that_was_stopped_kills_nothing(asking: World) -> None:
    world = asking
    world.asking_s = 1000.0  # longer than any probe may take: the supervisor itself was stopped
    world.supervise_until_ready(("model",), ("web1",))
    world.silent = {"model", "web1"}
    asked = world.asked
    wait_for(lambda: world.asked > asked + 50, LIMIT_S)
    assert {watched.state for watched in world.supervisor.watched} == {"ready"}
    assert not [line for line in world.story if "killed" in line]
    assert world.finish() is None


def test_a_question_that_fails_by_itself_costs_no_process_its_life(asking: World) -> None:
    world = asking
    world.supervise_until_ready(("model",), ("web1",))
    world.broken = True
    world.silent = {"web1"}
    asked = world.asked
    wait_for(lambda: world.asked > asked + 50, LIMIT_S)
    assert world.watched("web1").state == "ready"
    assert world.finish() is None


def test_a_hung_process_is_not_waited_for_when_it_is_asked_to_stop(asking: World) -> None:
    world = asking
    world.stubborn = {"web1"}
    world.supervise_until_ready(("model",), ("web1",), drain_s=1000.0)
    world.misses, world.silent = 3, {"web1"}
    world.becomes("web1", "hung")
    restarted = world.supervisor.restart(["web1"])
    world.becomes("web1", "stopping")
    world.silent.clear()
    world.now += module.STOP_GRACE_S
    restarted.result(LIMIT_S)
    assert world.story[-4:] == ["web1 asked", "web1 killed", "web1 ended", "web1 started"]
    world.stubborn.clear()
    assert world.finish() is None


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_third_end_by_a_fault_names_the_model_and_one_by_a_kill_does_not(world: World) -> None:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{message}", level="ERROR")
    try:
        world.supervise_until_ready(("server",))
        for signal in (8, 9, 11, 8):
            world.becomes("server", "ready")
            assert not lines
            world.now += 5.0
            process = world.process("server")
            process.end(-signal)
            wait_for(lambda ended=process: world.watched("server").process is not ended, LIMIT_S)
            world.now += 5.0
        world.becomes("server", "ready")
        assert lines == ["Saw server end by a fault 3 times (signal 8 (SIGFPE)); server serves a model\n"]
    finally:
        logger.remove(sink)
        world.finish()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_server_that_ends_by_a_fault_at_its_first_start_names_the_model(world: World) -> None:
    world.not_ready.add("server")
    world.supervise(("server",))
    wait_for(lambda: world.running, LIMIT_S)
    world.process("server").end(-8)
    error = world.finish(stop=False)
    assert str(error).startswith("server did not start (signal 8); server serves a model; its log, ")
