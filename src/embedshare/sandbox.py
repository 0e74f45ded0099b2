"""Runs work on untrusted data in a child process: a crash, hang or memory leak ends that process, not the
worker.

lxml sometimes crashes in several threads (github.com/adbar/trafilatura, issues 840 and 925), and a page of
two megabytes can take minutes to parse. A process can be ended, a thread cannot. `multiprocessing`, and
libraries on it, cannot start one here: spawn would run the worker's script again, and fork would copy its
threads' locks. It also reads pickles, by which a compromised child would take over the worker. A child costs
an interpreter's start, and ends after a minute without work.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from loguru import logger

from embedshare import platforms, threads
from embedshare.platforms import children

#: Seconds after which an idle child ends.
IDLE_S = 60.0
#: Seconds after which a child ends itself: its parent, which would be quicker, is gone.
ORPHANED_S = 60.0
#: The child's memory limit, where the system enforces one.
MEMORY_BYTES = 1 << 30
#: The longest message: a page has two megabytes.
LONGEST = 16 << 20
_LENGTH = struct.Struct("<I")


class Lost(Exception):
    """There is no answer: the child did not start, crashed, or was killed at its deadline."""


class Late(Lost):
    """The work took longer than it may."""


class Busy(Lost):
    """No child was free in time, or could be started; the work was not begun."""


def require(package: str) -> None:
    """Raise ImportError if a package that the child needs is missing; nothing is imported."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"there is no package {package}", name=package)


class Sandbox:
    """At most `at_once` children, each with one piece of work at a time. Thread-safe.

    `module` is a child's main module; it calls `serve`. Its environment holds only the variables that an
    interpreter needs and those that begin with one of `environment`: no keys and no passwords. `longest`: the
    longest answer that is read, in bytes.
    """

    def __init__(
        self, module: str, at_once: int, environment: tuple[str, ...] = (), longest: int = LONGEST
    ) -> None:
        self._module, self._environment, self._longest = module, environment, longest
        self._at_once = at_once
        self._begin()
        platforms.after_fork_in_child(self._begin)

    def _begin(self) -> None:
        """In a forked process too: work of the parent's threads would hold its places there for ever."""
        self._places = threading.BoundedSemaphore(self._at_once)
        self._idle: deque[_Child] = deque()

    def prepare(self) -> None:
        """Start a child if there is none, so that it is ready when work comes."""
        if self._places.acquire(blocking=False):
            try:
                self._idle.append(self._child())
            except OSError:
                pass  # the next call for work raises it
            finally:
                self._places.release()

    def do(self, work: bytes, deadline: float, limit_s: float) -> bytes:
        """The child's answer, by the moment `deadline` of `time.monotonic()`; the work itself may take
        `limit_s` of that. Raises Lost."""
        if not self._places.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise Busy("no process was free in time")
        try:
            return self._done(work, deadline, limit_s)
        finally:
            self._places.release()

    def _done(self, work: bytes, deadline: float, limit_s: float) -> bytes:
        while True:
            try:
                child = self._child()
            except OSError as error:
                raise Busy(f"no process could be started: {error}") from None
            worked, until = child.worked, deadline
            try:
                if not worked:
                    child.wait_until_ready(deadline)
                until = min(deadline, time.monotonic() + limit_s)
                answer = child.do(work, until)
            except (OSError, EOFError):
                code = child.end()
                if time.monotonic() >= until:
                    raise Late("it took too long") from None
                logger.warning("Lost a process that reads untrusted data (it ended with code {})", code)
                if worked:
                    continue  # it just ended idle, or was broken by earlier work
                raise Lost(f"it ended the process with code {code}") from None
            except BaseException:
                child.end()
                raise
            self._idle.append(child)
            return answer

    def _child(self) -> _Child:
        """An idle child, else a new one."""
        while self._idle:
            child = self._idle.pop()
            if child.runs:
                return child
            child.end()
        return _Child(self._module, self._environment, self._longest)


class _Child:
    def __init__(self, module: str, environment: tuple[str, ...], longest: int) -> None:
        self.worked = False
        self._longest = longest
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**children.bare_environment(environment), "PYTHONSAFEPATH": "1"},
            **platforms.own_process_group(),
        )

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self, deadline: float) -> None:
        """Raises OSError or EOFError if it ended, or the deadline ended it."""
        self._exchange(None, deadline)

    def do(self, work: bytes, deadline: float) -> bytes:
        """Raises OSError or EOFError if it ended, or the deadline ended it."""
        self.worked = True
        return self._exchange(work, deadline)

    def _exchange(self, work: bytes | None, deadline: float) -> bytes:
        # Pipes lack timeouts on some systems; the end of the other process wakes the reader on all.
        ending = threads.later(max(0.0, deadline - time.monotonic()), self._process.kill)
        try:
            if work is not None:
                _send(self._process.stdin, work)
            answer = _receive(self._process.stdout, self._longest)
        finally:
            if ending is not None:
                ending.cancel()
        if answer is None:
            raise EOFError
        return answer

    def end(self) -> int:
        """Its exit code."""
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return code


def serve(work: Callable[[bytes], bytes], longest: int = LONGEST) -> None:
    """The child's side: answers until its parent closes its input, or leaves it idle for IDLE_S.

    An exception of `work` ends the child, as a crash would. `longest`: see Sandbox, of the parent's messages.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # left to the parent, which closes our input
    platforms.limit_own_memory(MEMORY_BYTES)
    asked, answers = (os.fdopen(os.dup(end), mode, 0) for end, mode in ((0, "rb"), (1, "wb")))
    os.dup2(2, 1)  # libraries' output must not mix with answers
    _send(answers, b"")  # ready: the imports are done
    while True:
        end_after(IDLE_S)
        message = _receive(asked, longest)
        if message is None:
            return
        end_after(ORPHANED_S)
        _send(answers, work(message))


def end_after(seconds: float) -> None:
    """End the child then, unless this is called again: `work` that may take over ORPHANED_S calls it first.

    In a thread of C's, which needs no turn of Python's.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)


def _send(pipe: Any, message: bytes) -> None:
    for part in (_LENGTH.pack(len(message)), message):
        left = memoryview(part)
        while left:
            left = left[pipe.write(left) :]


def _receive(pipe: Any, longest: int) -> bytes | None:
    """None if the other end has closed."""
    head = _read(pipe, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > longest:
        raise OSError(f"a message of {length:,} bytes")
    return _read(pipe, length)


def _read(pipe: Any, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = pipe.read(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)
