"""Whether the server is alive: one probe serves all waiting threads, and a doubt is not a verdict."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from embedshare.errors import DeadlineExceeded, ServerHung, ServerUnavailable
from embedshare.ipc.codec import Caller
from embedshare.ipc.connection import Connections
from embedshare.ipc.hang_detector import PROBE_S, HangDetector
from embedshare.ipc.transport import PATIENCE_S
from embedshare.settings import ServerSettings
from tests.processes import wait_for


class Server:
    """The server behind `probe`: an answer takes `takes_s` of a clock that the test moves."""

    def __init__(self, takes_s: float = 0.0, alive: bool = True) -> None:
        self.now = 100.0
        self.takes_s = takes_s
        self.alive = alive
        self.asked: list[float] = []
        self.hang_detector = HangDetector(self.probe, lambda: self.now)

    def probe(self, deadline: float) -> None:
        self.asked.append(deadline - self.now)
        if self.now + self.takes_s > deadline:
            self.now = deadline
            raise DeadlineExceeded("no answer")
        self.now += self.takes_s
        if not self.alive:
            raise ServerUnavailable("gone")


def test_a_server_that_answered_another_call_lately_is_not_asked() -> None:
    server = Server()
    server.hang_detector.answered(server.now - PATIENCE_S / 2)
    server.hang_detector.check(server.now + 60)
    assert server.asked == []


def test_a_server_that_answered_no_call_lately_is_asked_and_lives() -> None:
    server = Server(takes_s=0.5)
    server.hang_detector.check(server.now + 60)
    assert server.asked == [PROBE_S]
    server.hang_detector.check(server.now + 60)  # the result stays valid for a while
    assert server.asked == [PROBE_S]


@pytest.mark.parametrize("silent", [{"alive": False}, {"takes_s": 60.0}])
def test_a_server_that_does_not_answer_hangs(silent: dict[str, float]) -> None:
    server = Server(**silent)  # type: ignore[arg-type]
    with pytest.raises(ServerHung):
        server.hang_detector.check(server.now + 60)


def test_a_deadline_before_the_probe_s_end_is_no_verdict() -> None:
    server = Server(takes_s=60.0)
    with pytest.raises(DeadlineExceeded) as raised:
        server.hang_detector.check(server.now + 1)
    assert not isinstance(raised.value, ServerUnavailable)
    assert server.asked == [1.0]


def test_a_failure_of_the_past_does_not_count() -> None:
    server = Server(alive=False)
    with pytest.raises(ServerHung):
        server.hang_detector.check(server.now + 60)
    server.now += 10
    server.alive = True
    server.hang_detector.check(server.now + 60)
    assert len(server.asked) == 2


def test_of_many_that_wait_one_asks_and_all_are_told() -> None:
    asked, go_on = threading.Event(), threading.Event()
    probes = []

    def probe(deadline: float) -> None:
        probes.append(deadline)
        asked.set()
        assert go_on.wait(30)
        raise ServerUnavailable("gone")

    hang_detector, told, clock = HangDetector(probe, lambda: clock[0]), [], [100.0]

    def wait() -> None:
        try:
            hang_detector.check(200.0)
        except ServerHung as error:
            told.append(error)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert asked.wait(30)
    wait_for(lambda: hang_detector._probing.locked(), what="the probe")
    clock[0] += 1
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert (len(told), len(probes)) == (8, 1)


@pytest.mark.parametrize(("number", "counts"), [(errno.EMFILE, False), (errno.ECONNREFUSED, True)])
def test_a_process_that_can_open_no_connection_takes_no_slow_server_for_a_hung_one(
    number: int, counts: bool
) -> None:
    def key() -> bytes:
        try:
            raise OSError(number, "no connection")
        except OSError:
            raise ServerUnavailable("no connection") from None

    connections = Connections(ServerSettings(), key, lambda: Caller(1, "test"), True)
    if counts:
        with pytest.raises(ServerHung):
            connections._hang_detector.check(time.monotonic() + 60)
    else:
        connections._hang_detector.check(time.monotonic() + 60)
