"""A file of audit lines that several processes write to: each line by one write at the file's end.

On Linux and macOS a write to a local file that was opened for appending is placed as a whole; on Windows the
right to append alone has the same effect. A network file system may not keep that promise.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from loguru import logger

from embedshare import platforms, private_file

#: Seconds between two log lines about lines that could not be written.
TELL_EVERY_S = 60.0
#: Seconds between two checks whether the file was renamed or deleted. A check with each line would cost as
#: much as the line (docs/decisions/016-who-may-call.md).
LOOK_EVERY_S = 1.0


class AuditLog:
    """Appends lines to the file at `path`; thread-safe and fork-safe.

    A new file is its owner's alone. After a rotation by renaming, lines go to a new file within LOOK_EVERY_S;
    after a truncation the next line is the first one. A line that cannot be written is lost, which the log
    tells once a minute.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._file: BinaryIO | None = None
        self._status: os.stat_result | None = None  # of the open file
        self._look_at = 0.0
        self._lost, self._told_at, self._is_told = 0, float("-inf"), False
        self._is_cut = False  # the last line is there in part
        self._renew_lock()
        platforms.after_fork_in_child(self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def write(self, line: bytes) -> None:
        """Append a line, which ends with a newline; never raises an OSError."""
        with self._lock:  # a file that another thread closes meanwhile may be anyone's next file
            try:
                self._append(line)
            except OSError as error:
                self._count_lost(error)
            else:
                self._tell_return()

    def _append(self, line: bytes) -> None:
        file = self._current()
        whole = b"\n" + line if self._is_cut else line
        written = file.write(whole)
        if written != len(whole):
            self._is_cut = written > 0 or self._is_cut
            raise OSError(None, "only a part of a line was written: the disk is full")
        self._is_cut = False

    def _current(self) -> BinaryIO:
        """The file that is at the path now, or was at the last check. Raises OSError."""
        if self._file is not None and self._status is not None:
            if self._clock() < self._look_at:
                return self._file
            self._look_at = self._clock() + LOOK_EVERY_S
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._path), self._status):
                    return self._file
            before, self._file = self._file, None
            before.close()
        self._file, self._is_cut = self._opened(), False
        return self._file

    def _opened(self) -> BinaryIO:
        with suppress(FileExistsError):
            private_file.create(self._path)
        file = platforms.append_only(self._path)
        self._status, self._look_at = os.fstat(file.fileno()), self._clock() + LOOK_EVERY_S
        fault = platforms.fault_of_secret(self._status)
        if fault is not None:
            logger.warning("Writing the audit log {}, which others can read or own ({})", self._path, fault)
        return file

    def _count_lost(self, error: OSError) -> None:
        self._lost += 1
        if self._clock() - self._told_at >= TELL_EVERY_S:
            self._told_at, self._is_told = self._clock(), True
            reason = error.strerror or type(error).__name__
            logger.error("Losing audit lines, {:,} so far ({}: {})", self._lost, self._path, reason)

    def _tell_return(self) -> None:
        if self._is_told:  # a disk that is full now and then is told of once a minute too
            logger.info("Writing audit lines to {} again; {:,} were lost", self._path, self._lost)
            self._lost, self._is_told = 0, False
