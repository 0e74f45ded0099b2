"""A client's counters in isolation."""

from __future__ import annotations

import threading

from embedshare.calls import Timings
from embedshare.telemetry.calls import OK, Calls, Ended
from tests.forking import forks, holds_in_forked_child

TIMINGS = Timings(0.1, 0.2, 0.3)


def test_calls_are_counted_by_how_they_ended() -> None:
    calls = Calls()
    for outcome, timings in ((OK, TIMINGS), (OK, None), ("Overloaded", None)):
        calls.end(calls.begin(), "encode", outcome, "server", timings)
    calls.begin()
    found = calls.stats()
    assert (found["calls"], found["failures"], found["in_flight"]) == (3, 1, 1)
    assert sum(found["histograms"]["total_ms"]["counts"]) == 1  # only calls that returned vectors


def test_a_listener_hears_of_every_call() -> None:
    calls = Calls()
    heard: list[Ended] = []
    calls.listeners.append(heard.append)
    calls.end(calls.begin(), "encode", OK, "local", TIMINGS, 3)
    calls.end(calls.begin(), "tokenize", "TooLarge", "nobody", None)
    assert [one._replace(total_ms=0) for one in heard] == [
        Ended("encode", OK, "local", 0, TIMINGS, 3),
        Ended("tokenize", "TooLarge", "nobody", 0, None, 0),
    ]
    assert all(0 <= one.total_ms < 10_000 for one in heard)


def test_calls_of_many_threads_are_counted_exactly() -> None:
    calls = Calls()

    def work() -> None:
        for _ in range(2_000):
            calls.end(calls.begin(), "encode", OK, "server", TIMINGS)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = calls.stats()
    assert (found["calls"], found["in_flight"]) == (16_000, 0)
    assert sum(found["histograms"]["total_ms"]["counts"]) == 16_000


@forks
def test_a_forked_child_counts_its_own_calls() -> None:
    calls = Calls()
    heard: list[Ended] = []
    calls.listeners.append(heard.append)
    calls.begin()

    def counts_its_own() -> bool:
        calls.end(calls.begin(), "encode", OK, "server", TIMINGS)
        found = calls.stats()
        return (found["calls"], found["in_flight"], len(heard)) == (1, 0, 1)

    assert holds_in_forked_child(counts_its_own)
    assert (calls.stats()["calls"], calls.stats()["in_flight"], heard) == (0, 1, [])
