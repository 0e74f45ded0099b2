"""Whether the processor has spare time, according to the system's counters."""

from __future__ import annotations

from collections import namedtuple

import psutil
import pytest

from embedshare.telemetry.cpu_load import LOOK_EVERY_S, STALE_AFTER_S, CpuLoad

Linux = namedtuple("Linux", "user nice system idle iowait irq softirq steal guest guest_nice")
Windows = namedtuple("Windows", "user system idle interrupt dpc")


class Machine:
    """Counters and a clock that a test moves."""

    def __init__(self, kind: type) -> None:
        self.now = 1000.0
        self.times = kind(*(500.0 for _ in kind._fields))  # type: ignore[attr-defined]
        self.looks = 0
        self.processor = CpuLoad(self.read, lambda: self.now)

    def read(self) -> object:
        self.looks += 1
        return self.times

    def after(self, seconds: float, **spent: float) -> bool:
        self.now += seconds
        times = {name: getattr(self.times, name) + passed for name, passed in spent.items()}
        self.times = self.times._replace(**times)
        return self.processor.is_busy


@pytest.mark.parametrize("kind", [Linux, Windows])
def test_it_is_busy_where_three_fifths_of_the_time_between_two_looks_are_used(kind: type) -> None:
    machine = Machine(kind)
    assert not machine.after(0.0)  # no earlier reading exists
    assert machine.after(0.1, user=1.0, system=0.3, idle=0.7)
    assert not machine.after(0.1, user=0.8, system=0.3, idle=0.9)


def test_waiting_for_disks_is_time_to_spare_and_what_a_guest_got_counts_once() -> None:
    machine = Machine(Linux)
    assert not machine.after(0.0)
    assert not machine.after(0.1, user=1.0, idle=0.2, iowait=0.8)
    assert not machine.after(0.1, user=1.1, guest=1.1, idle=0.9)  # 55%, not 71%
    assert machine.after(0.1, steal=1.9, idle=0.1)  # other machines use the time: none is spare


def test_between_two_looks_the_system_is_not_asked() -> None:
    machine = Machine(Linux)
    machine.after(0.0)
    machine.after(0.1, user=2.0)
    assert machine.after(LOOK_EVERY_S / 2, idle=5.0)
    assert machine.looks == 2
    assert not machine.after(LOOK_EVERY_S)


def test_who_has_not_asked_for_long_is_told_of_now() -> None:
    machine = Machine(Linux)
    machine.after(0.0)
    assert machine.after(LOOK_EVERY_S * 2, user=2.0)
    assert not machine.after(STALE_AFTER_S * 2, user=2.0)
    assert machine.after(LOOK_EVERY_S * 2, user=2.0)


def test_the_system_s_own_counters_are_understood() -> None:
    now = [0.0]
    processor = CpuLoad(clock=lambda: now[0])
    assert not processor.is_busy
    while sum(psutil.cpu_times()) - processor._total_s < 0.05:
        now[0] += LOOK_EVERY_S
    assert processor.is_busy in (True, False)
    assert 0 < processor._idle_s < processor._total_s
