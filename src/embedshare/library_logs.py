"""Turns the output of libraries into lines of this program's own log.

Libraries write with `logging`, `warnings` and `print`, and Python prints the tracebacks of uncaught errors.
All of it goes through loguru here: each line has a date, and is JSON if the log is. Output of C code to the
file descriptor stays as it is, since a crashing process must still say why.
"""

from __future__ import annotations

import atexit
import io
import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from loguru import logger

#: Warnings of one kind that are logged in a period of this many seconds. The next one says how many were not.
MOST_OF_A_KIND, PERIOD_S = 3, 60.0
#: Kinds told apart in that time. Further ones count as one kind, which bounds all lines.
MOST_KINDS = 100
#: Characters printed without an end of line, at most; then the line is ended here.
LONGEST_LINE = 10_000
#: Characters of a message that tell its kind; all numbers count as one.
_KIND_CHARS = 80
_NUMBER = re.compile(r"\d+")
_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO")
_OTHERS = "", ""


class Repeats:
    """Bounds repeated messages; thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Reentrant: an object that is collected within it may log, as an abandoned asyncio task does.
        self._lock = threading.RLock()
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}
        """By kind: when its period began, and how many have come since."""

    def left_out(self, source: str, message: str) -> int | None:
        """The number of this message's kind left out before this one; None if this one is left out too."""
        kind = source, _NUMBER.sub("0", message[:_KIND_CHARS])
        now = self._clock()
        with self._lock:
            if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
                self._forget(now)
                if len(self._kinds) >= MOST_KINDS:
                    kind = _OTHERS
            began, count = self._kinds.get(kind, (now, 0))
            missed = 0
            if now - began >= PERIOD_S:
                missed, began, count = max(0, count - MOST_OF_A_KIND), now, 0
            self._kinds[kind] = began, count + 1
        return missed if count < MOST_OF_A_KIND else None

    def _forget(self, now: float) -> None:
        for kind in [kind for kind, (began, _) in self._kinds.items() if now - began >= PERIOD_S]:
            del self._kinds[kind]


def take_over(*streams: str) -> None:
    """Have loguru log the output of this process's libraries, and of these streams of `sys`.

    For programs alone: in a user's own process the output is the user's.
    """
    repeats = Repeats()
    _take_logging(_Handler(repeats))
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable
    for name in streams:
        stream = getattr(sys, name)
        # A terminal has a reader, not a parser, and programs draw on it.
        if stream is not None and not isinstance(stream, Lines) and not stream.isatty():
            setattr(sys, name, Lines(name, stream, repeats))


def original(stream: TextIO) -> TextIO:
    """The stream that `take_over` replaced, or the stream itself."""
    return stream.original if isinstance(stream, Lines) else stream


class Lines(io.TextIOBase):
    """A standard stream whose written lines become lines of the log."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self, name: str, stream: TextIO, repeats: Repeats) -> None:
        self._name = name
        self.original = stream
        self._repeats = repeats
        self._lock = threading.RLock()  # as that of Repeats
        self._begun = ""
        atexit.register(self.end)

    def write(self, text: str) -> int:
        """Log the lines that it completes; text that a carriage return overwrites is not logged."""
        with self._lock:
            *lines, begun = (self._begun + text).replace("\r\n", "\n").split("\n")
            begun = begun[begun.rstrip("\r").rfind("\r") + 1 :]
            if len(begun) > LONGEST_LINE:
                lines, begun = [*lines, begun], ""
            self._begun = begun
        for line in lines:
            self._log(line)
        return len(text)

    def _log(self, line: str) -> None:
        line = line.rstrip("\r").rpartition("\r")[2].strip()
        if line:
            _say("INFO", self._name, line, self._repeats)

    def end(self) -> None:
        with self._lock:
            line, self._begun = self._begun, ""
        self._log(line)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """The stream's own: children that inherit it write there."""
        return self.original.fileno()

    @property
    def buffer(self) -> Any:
        """The stream's own."""
        return self.original.buffer


class _Handler(logging.Handler):
    def __init__(self, repeats: Repeats) -> None:
        super().__init__()
        self._repeats = repeats

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception as error:  # a library's own mistake in a line that it logs
            message = f"{record.msg} ({type(error).__name__} in this line of the library's)"
        level = next((name for name in _LEVELS if record.levelno >= getattr(logging, name)), "DEBUG")
        # Below a warning only the loggers that were told to log do.
        bounded = self._repeats if record.levelno >= logging.WARNING else None
        _say(level, record.name, message, bounded, record.exc_info)


def _say(level: str, source: str, message: str, repeats: Repeats | None, error: Any = None) -> None:
    message = " | ".join(filter(None, map(str.strip, message.splitlines())))
    missed = 0 if repeats is None else repeats.left_out(source, message)
    if missed is not None:
        more = f" ({missed:,} more like it in the {PERIOD_S:g} s before were left out)" if missed else ""
        logger.opt(exception=error).log(level, "{}: {}{}", source, message, more)


def _take_logging(handler: logging.Handler) -> None:
    """Make all loggers write to `handler`, and to no stream; files that they were given stay.

    From warnings on: below that level libraries quote callers' input. urllib3 logs the addresses that it
    requests, and an address holds a query.
    """
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings quote addresses as well
    for known in list(logging.root.manager.loggerDict.values()):
        if isinstance(known, logging.Logger):
            _stop_printing(known)


def _stop_printing(known: logging.Logger) -> None:
    printing = [each for each in known.handlers if _prints(each)]
    for each in printing:
        known.removeHandler(each)
    known.propagate = known.propagate or bool(printing)


def _prints(handler: logging.Handler) -> bool:
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    stream = getattr(handler, "stream", None)
    return stream is not None and any(
        stream in (each, original(each)) for each in streams if each is not None
    )


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        logger.warning("Interrupted")
        return
    logger.opt(exception=(kind, error, trace)).critical("Exiting on an uncaught error")


def _uncaught_in_thread(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_type is SystemExit:
        return
    name = failure.thread.name if failure.thread is not None else "unknown"
    error: Any = failure.exc_type, failure.exc_value, failure.exc_traceback
    logger.opt(exception=error).error("Lost the thread {} to an uncaught error", name)


def _unraisable(failure: Any) -> None:
    error = failure.exc_type, failure.exc_value, failure.exc_traceback
    where = getattr(failure.object, "__qualname__", type(failure.object).__name__)  # no values: see logs.py
    logger.opt(exception=error).error("Could not raise an error in {}", where)
