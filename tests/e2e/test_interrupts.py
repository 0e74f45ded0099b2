"""Callers are interrupted during a call, handle signals, or time out: the next call gets its own vector."""

from __future__ import annotations

import json
import linecache
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import DeadlineExceeded
from tests.e2e.conftest import TEXTS, check
from tests.processes import ModelServer, wait_for
from tests.proxy import Proxy, Stall, cut, delayed

#: Interrupted or hurried calls, each followed by an undisturbed one.
ROUNDS = 400
signals = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signals")


INTERRUPTED = """
import collections, json, random, signal, sys, threading
import numpy as np
import psutil
from embeddingClient import get_embedding_model
from embedshare.errors import DeadlineExceeded

texts, rounds = json.loads(sys.stdin.readline())
expected = np.load(sys.argv[1])
model, counts = get_embedding_model(), collections.Counter()

class Interrupted(Exception):
    pass

def interrupt(*_):
    raise random.choice((KeyboardInterrupt, Interrupted))

def call_in_a_hurry(text):
    hurry = random.uniform(1e-4, 8e-3)
    timeout, interrupted_after = random.choice(((None, hurry), (hurry, 0), (hurry, hurry)))
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, interrupted_after)
            model.encode(text, timeout=timeout)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return "answered"
    except (KeyboardInterrupt, Interrupted):
        return "interrupted"
    except DeadlineExceeded:
        return "out of time"

signal.signal(signal.SIGALRM, interrupt)
model.encode("connect")
files = psutil.Process().num_fds()
for _ in range(rounds):
    first, then = random.sample(range(len(texts)), 2)
    counts[call_in_a_hurry([texts[first]] * random.choice((1, 1, 60)))] += 1
    cosine = float(model.encode(texts[then]) @ expected[then])
    counts["right" if cosine > 0.9995 else "wrong"] += 1
assert psutil.Process().num_fds() <= files, psutil.Process().num_fds() - files
print(json.dumps(counts))
"""


@signals
def test_after_each_of_hundreds_of_interrupts_the_same_thread_gets_its_own_vector(
    server: ModelServer, expected: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "expected.npy", expected)
    before = connections(server)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "expected.npy")],
        input=json.dumps([TEXTS, ROUNDS]), env=server.environment(EMBEDDING_FALLBACK="none"),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    print(f"\n{counts}")
    assert counts["right"] == ROUNDS
    assert counts["interrupted"] > ROUNDS / 4
    assert counts["out of time"] > ROUNDS / 20
    wait_for(lambda: connections(server) <= before, 30, "the end of the connections of interrupted calls")


def connections(server: ModelServer) -> int:
    """Return the number of connections that the server holds."""
    assert server.process is not None
    return sum(
        one.status == psutil.CONN_ESTABLISHED
        for one in psutil.Process(server.process.pid).net_connections("tcp")
    )


class Interrupted(Exception):
    """An error that a signal handler may raise at any point."""


def interrupt_at_line(number: int) -> Any:
    """Return a trace function that raises at the n-th line of embedshare that a call executes.

    It skips the end of a `with`: there it would raise before the lock is released, as no signal handler can.
    """

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal number
        file = frame.f_code.co_filename
        if "embedshare" not in file:
            return None
        if event == "line" and not linecache.getline(file, frame.f_lineno).lstrip().startswith("with "):
            number -= 1
            if not number:
                raise Interrupted
        return trace

    return trace


@pytest.mark.parametrize("timeout", [None, 0.02], ids=["answered", "out of time"])
def test_an_interrupt_at_any_line_leaves_nothing_to_the_next_call(
    caller: EmbeddingClient, proxy: Proxy, expected: np.ndarray, timeout: float | None
) -> None:
    before, line, interrupted = sys.gettrace(), 0, True
    while interrupted:
        line += 1
        proxy.on_answer = cut(20, Stall) if timeout else None
        sys.settrace(interrupt_at_line(line))
        try:
            caller.encode(TEXTS[0], timeout=timeout)
            interrupted = False
        except Interrupted:
            pass
        except DeadlineExceeded:
            interrupted = False
        finally:
            sys.settrace(before)
        proxy.heal()
        check(caller, expected, 1 + line % 39, timeout=5)
    print(f"\ninterrupted at {line - 1} lines, {proxy.opened} connections")
    assert line > 40


@contextmanager
def signals_to_this_thread(handler: Any, pause_s: float) -> Iterator[None]:
    """Send signals one after another, with pauses; pytest's own time limit occupies the timer."""
    enough, thread = threading.Event(), threading.get_ident()

    def send() -> None:
        while not enough.wait(pause_s):
            signal.pthread_kill(thread, signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, handler)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        enough.set()
        sender.join()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # not the default, exit: one may be pending


@signals
@pytest.mark.parametrize("direction", ["on_request", "on_answer"])
def test_signals_that_a_program_handles_do_not_move_the_deadline(
    caller: EmbeddingClient, proxy: Proxy, expected: np.ndarray, direction: str
) -> None:
    setattr(proxy, direction, cut(20, Stall))
    rescue = threading.Timer(5, proxy.close)  # ends the test if a call hangs
    rescue.start()
    began = time.monotonic()
    with signals_to_this_thread(lambda *_: None, 0.05), pytest.raises(DeadlineExceeded):
        caller.encode(TEXTS[0], timeout=0.3)
    rescue.cancel()
    assert time.monotonic() - began < 1.3
    check(caller, expected, 1)


@signals
def test_a_signal_handler_that_calls_in_mid_call_gets_its_own_vector(
    caller: EmbeddingClient, proxy: Proxy, expected: np.ndarray
) -> None:
    handled = 0

    def call_too(*_: object) -> None:
        nonlocal handled
        handled += 1
        check(caller, expected, handled % 40)

    proxy.on_answer = delayed(0.005)
    with signals_to_this_thread(call_too, 0.05):
        for number in range(100):
            check(caller, expected, number % 40)
    print(f"\n{handled} calls in a signal handler")
    assert handled > 5


def _seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_calls_that_give_up_at_random_leave_nothing_to_the_next(
    caller: EmbeddingClient, proxy: Proxy, expected: np.ndarray
) -> None:
    counts: Counter[str] = Counter()
    usual_s = sorted(_seconds(lambda: caller.encode(TEXTS[0])) for _ in range(21))[10]
    for number in range(300):
        text = TEXTS[number % 40] if number % 3 else TEXTS[: number % 40]
        try:
            caller.encode(text, timeout=random.uniform(0.0, 2 * usual_s))
            counts["answered"] += 1
        except DeadlineExceeded:
            counts["out of time"] += 1
        check(caller, expected, (number + 1) % 40)
    print(f"\n{dict(counts)}, {proxy.opened} connections")
    assert counts["out of time"] > 30
