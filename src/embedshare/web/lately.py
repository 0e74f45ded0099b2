"""What a worker keeps between requests: bounded in number and bytes, what was used longest ago goes first."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class LatelyUsed(Generic[T]):
    """Things by an id that nobody can guess. Thread-safe."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self.most_bytes = most, most_bytes
        self._kept: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, thing: T, size: int) -> str:
        """Keep a thing of `size` bytes, at most `most_bytes`; its id."""
        name = secrets.token_hex(8)
        with self._lock:
            self._add(name, thing, size)
        return name

    def get(self, name: str) -> T | None:
        """The thing, which counts as used now; None where there is none of that id."""
        with self._lock:
            if name not in self._kept:
                return None
            self._kept.move_to_end(name)
            return self._kept[name][0]

    def grown(self, name: str, size: int) -> None:
        """The thing takes `size` bytes now; one that has gone meanwhile stays gone."""
        with self._lock:
            if name in self._kept:
                thing, before = self._kept.pop(name)
                self._bytes -= before
                self._add(name, thing, size)

    def take(self, name: str) -> T | None:
        """The thing, which is kept no more."""
        with self._lock:
            if name not in self._kept:
                return None
            thing, size = self._kept.pop(name)
            self._bytes -= size
            return thing

    def _add(self, name: str, thing: T, size: int) -> None:
        self._kept[name] = thing, size
        self._bytes += size
        while len(self._kept) > self.most or self._bytes > self.most_bytes:
            _, (_, gone) = self._kept.popitem(last=False)
            self._bytes -= gone
