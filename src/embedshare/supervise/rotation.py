"""Rotates log files while other processes write to them.

A process keeps its log open, so the file is copied and then truncated, as by logrotate's copytruncate: a line
written in the microseconds between is lost. Renaming would need every process to reopen its log; a pipe
through the supervisor would stall them whenever it stalls.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from loguru import logger

from embedshare.supervise.process import write_fault

#: Seconds between two checks whether there is room for logs.
LOOK_EVERY_S = 10.0


class Logs:
    """Rotates logs, and logs when their folder cannot be written to and when it can again: the processes
    could log that nowhere."""

    def __init__(self, max_bytes: int, keep: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes, self._keep = max_bytes, keep
        self._clock = clock
        self._look_at: dict[Path, float] = {}
        self._faults: dict[Path, str] = {}

    def __call__(self, log: Path) -> None:
        """Check one log; called often."""
        folder = log.parent
        if self._clock() >= self._look_at.get(folder, 0.0):
            self._look_at[folder] = self._clock() + LOOK_EVERY_S
            self._look(folder)
        if folder not in self._faults:  # rotating copies a log
            rotate(log, self._max_bytes, self._keep)

    def _look(self, folder: Path) -> None:
        fault, before = write_fault(folder), self._faults.pop(folder, None)
        if fault is not None:
            self._faults[folder] = fault
        if fault is not None and fault != before:
            logger.error(
                "Cannot write logs to {} ({}): the services continue, but their log lines are lost. "
                "Make room there, or restart with another EMBEDDING_LOG_DIR",
                folder,
                fault,
            )
        elif fault is None and before is not None:
            logger.info("Writing logs to {} again", folder)


def rotate(log: Path, max_bytes: int, keep: int) -> None:
    """If `log` is larger than `max_bytes`, move it to `log`.1, and that to `log`.2, up to `keep`."""
    try:
        if log.stat().st_size <= max_bytes:
            return
    except FileNotFoundError:
        return
    try:
        for number in range(keep, 1, -1):
            older = _numbered(log, number - 1)
            if older.exists():
                older.replace(_numbered(log, number))
        if keep:
            shutil.copyfile(log, _numbered(log, 1))
        with log.open("r+b") as file:
            file.truncate(0)
    except OSError as error:  # usually a full disk: the log keeps growing, and the services continue
        logger.warning("Could not rotate {}: {}", log, error)


def _numbered(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
