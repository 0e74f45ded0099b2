"""The money that remote models cost this month, kept in a file, which a restart does not reset."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import msgspec
from loguru import logger

from embedshare import private_file


class _Note(msgspec.Struct):
    """The file: a month such as 2026-11, and each model's cost in it."""

    month: str
    costs: dict[str, float]


def _this_month() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m")


class Spending:
    """Each model's cost in the calendar month (UTC); thread-safe. `path`: None keeps it in memory alone."""

    def __init__(self, path: Path | None = None, month: Callable[[], str] = _this_month) -> None:
        self._path = path
        self._month = month
        self._lock = threading.Lock()
        found = None if path is None else private_file.read_note(path, _Note)
        self._note = found or _Note(month(), {})

    def of(self, name: str) -> float:
        """The cost of a model this month."""
        with self._lock:
            return self._current().costs.get(name, 0.0)

    def add(self, name: str, cost: float) -> None:
        """A request of this cost was answered."""
        with self._lock:
            note = self._current()
            note.costs[name] = note.costs.get(name, 0.0) + cost
            self._write(note)

    def _current(self) -> _Note:
        if self._note.month != self._month():
            self._note = _Note(self._month(), {})
        return self._note

    def _write(self, note: _Note) -> None:
        if self._path is None:
            return
        try:
            private_file.replace(self._path, msgspec.json.encode(note))
        except OSError as error:
            logger.error("Keeping the spending of {} in memory alone ({})", note.month, error)
            self._path = None
