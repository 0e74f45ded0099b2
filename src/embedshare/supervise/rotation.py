"""Log files that stay short while other processes write to them.

A process keeps its log open for as long as it runs, so the file is copied and then cut to nothing, as
logrotate's copytruncate does it: a line that is written between the two, a few microseconds, is lost.
Renaming would need every process to open its log again; a pipe through the supervisor would stall them when
that stalls.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from loguru import logger


def rotate(log: Path, max_bytes: int, keep: int) -> None:
    """Where `log` is larger than `max_bytes`, move it on to `log`.1, and that to `log`.2, up to `keep`."""
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
    except OSError as error:  # a full disk, as a rule: the log goes on growing, and the services go on
        logger.warning("{} could not be rotated: {}", log, error)


def _numbered(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
