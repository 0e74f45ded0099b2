"""The last lines of log files, and new ones as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from embedshare.supervise.process import last_lines

#: Seconds between two reads of log files.
EVERY_S = 0.2


def last(logs: Mapping[str, Path], count: int) -> Iterator[tuple[str, str]]:
    """The last `count` lines of each log, as (name, line)."""
    for name, log in logs.items():
        for line in last_lines(log, count):
            yield name, line


def follow(logs: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """New lines, without end; a log that is truncated, or appears, is followed from its start."""
    ends = {name: _size(log) for name, log in logs.items()}
    begun = dict.fromkeys(logs, b"")
    while True:
        for name, log in logs.items():
            size = _size(log)
            if size < ends[name]:
                ends[name], begun[name] = 0, b""
            if size > ends[name]:
                *lines, begun[name] = (begun[name] + _read(log, ends[name], size)).split(b"\n")
                ends[name] = size
                for line in lines:
                    yield name, line.decode(errors="replace")
        time.sleep(EVERY_S)


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def _read(log: Path, start: int, end: int) -> bytes:
    with log.open("rb") as file:
        file.seek(start)
        return file.read(end - start)
