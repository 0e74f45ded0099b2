"""Which versions searches must not see, and which searches may still see a version that is to change.

A search takes the set of hidden versions when it begins. A change is seen by searches that begin after it.
What a change permits, to write the chunks of a version that is now hidden or to delete them, waits for the
searches that began before: those would find a part of them. Later searches are not waited for.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class _Session:
    changes: int = 0
    hidden: dict[str, int] = field(default_factory=dict)
    """By version, the change that hid it."""

    readers: Counter[int] = field(default_factory=Counter)
    """Searches under way, by the number of changes when they began."""

    drops: int = 0
    """Drops of the session under way."""


class Visibility:
    """The hidden versions of each session. Thread-safe; a search never waits."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self._changed = threading.Condition()

    @contextmanager
    def reading(self, session: str) -> Iterator[frozenset[str] | None]:
        """The versions that this search must not see; None: it sees nothing of the session."""
        with self._changed:
            state = self._sessions.setdefault(session, _Session())
            began = state.changes
            state.readers[began] += 1
            hidden = None if state.drops else frozenset(state.hidden)
        try:
            yield hidden
        finally:
            with self._changed:
                state.readers[began] -= 1
                if not state.readers[began]:
                    del state.readers[began]
                    self._changed.notify_all()
                self._tidy(session, state)

    def hidden(self, session: str) -> frozenset[str]:
        """The versions that are hidden now."""
        with self._changed:
            state = self._sessions.get(session)
            return frozenset() if state is None else frozenset(state.hidden)

    def stage(self, session: str, version: str) -> None:
        """Hide a version, and wait for the searches that began before it was hidden."""
        with self._changed:
            state = self._sessions.setdefault(session, _Session())
            if version not in state.hidden:
                self._change(state, (), [version])
            self._wait(state, state.hidden[version])

    def change(self, session: str, show: Iterable[str] = (), hide: Iterable[str] = ()) -> None:
        """Show and hide versions in one step; those that are not hidden are shown, and the reverse."""
        with self._changed:
            state = self._sessions.setdefault(session, _Session())
            self._change(state, show, hide)
            self._tidy(session, state)

    def wait_for_earlier(self, session: str) -> None:
        """Wait for the searches of the session that began before its last change."""
        with self._changed:
            state = self._sessions.get(session)
            if state is not None:
                self._wait(state, state.changes)

    @contextmanager
    def dropping(self, session: str) -> Iterator[None]:
        """Hide the whole session meanwhile, once the searches that began before have ended."""
        with self._changed:
            state = self._sessions.setdefault(session, _Session())
            state.drops += 1
            self._change(state, (), ())
            self._wait(state, state.changes)
        try:
            yield
        finally:
            with self._changed:
                state.drops -= 1
                self._tidy(session, state)

    def _change(self, state: _Session, show: Iterable[str], hide: Iterable[str]) -> None:
        state.changes += 1
        for version in show:
            state.hidden.pop(version, None)
        for version in hide:
            state.hidden.setdefault(version, state.changes)

    def _wait(self, state: _Session, change: int) -> None:
        self._changed.wait_for(lambda: all(began >= change for began in state.readers))

    def _tidy(self, session: str, state: _Session) -> None:
        if not state.hidden and not state.readers and not state.drops:
            self._sessions.pop(session, None)
