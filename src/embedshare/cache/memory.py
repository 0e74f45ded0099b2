"""Cached vectors in this process, bounded in bytes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: Bytes that an entry takes besides its vector: its key, its place and its marks.
OVERHEAD_BYTES = 144
#: Rows of a block, and the smallest number of blocks of the limit.
_ROWS, _BLOCKS = 256, 16
#: The share by which lifetimes differ, so that entries of one moment do not expire together.
_JITTER = 0.1


class Found(NamedTuple):
    """Cached vectors; `positions` are those of their keys among the requested keys."""

    positions: list[int]
    rows: np.ndarray
    """Float32 (len(positions), dimension)"""

    token_counts: list[int]


class MemoryCache:
    """Vectors by key, on a shelf for each model; thread-safe.

    At the limit, entries that were not used lately go: second chance, close to least recently used.
    A model that has less than its share takes a block of the one that has most. `lifetime_s`: seconds after
    which an entry is not used any more, give or take a tenth; 0 is never.
    """

    def __init__(self, limit_bytes: int, lifetime_s: float = 0.0) -> None:
        self._limit_bytes = limit_bytes
        self._lifetime_s = lifetime_s
        self._lock = threading.Lock()
        self._shelves: dict[bytes, _Shelf] = {}
        self._evictions = 0

    def get(self, space: bytes, keys: Sequence[bytes]) -> Found | None:
        """Those of the keys that are there; None if none is."""
        with self._lock:
            shelf = self._shelves.get(space)
            return None if shelf is None else shelf.get(keys, time.monotonic())

    def put(
        self,
        space: bytes,
        keys: Sequence[bytes],
        rows: np.ndarray,
        token_counts: Sequence[int],
        left_s: Sequence[float] | None = None,
    ) -> None:
        """Store float32 rows (len(keys), dimension), and the number of tokens of each.

        `left_s`: the seconds that each has left, if it is not new.
        """
        with self._lock:
            shelf = self._shelves.get(space)
            if shelf is None:
                block_rows = min(_ROWS, self._limit_bytes // _BLOCKS // _entry_bytes(rows.shape[1]))
                if block_rows == 0:  # not even a few rows fit
                    return
                shelf = self._shelves[space] = _Shelf(rows.shape[1], block_rows)
            expiries = [self._expiry() for _ in keys] if left_s is None else _moments(left_s)
            for key, row, tokens, expiry in zip(keys, rows, token_counts, expiries, strict=True):
                if not shelf.has_room(key):
                    self._make_room(shelf)
                shelf.put(key, row, tokens, expiry)

    def clear(self, space: bytes | None = None) -> int:
        """Drop the vectors of one model, or all; returns their number."""
        with self._lock:
            spaces = list(self._shelves) if space is None else [space]
            gone = [self._shelves.pop(one) for one in spaces if one in self._shelves]
            return sum(len(shelf.slots) for shelf in gone)

    def remove(self, space: bytes, keys: Sequence[bytes]) -> int:
        """Drop the vectors of these keys; returns the number of those that were there."""
        with self._lock:
            shelf = self._shelves.get(space)
            return 0 if shelf is None else sum(shelf.remove(key) for key in keys)

    def stats(self) -> dict[str, int]:
        """Entries, the bytes that they take, the limit, and evictions so far."""
        with self._lock:
            entries = sum(len(shelf.slots) for shelf in self._shelves.values())
            evictions = self._evictions
            return {
                "entries": entries, "bytes": self._bytes(), "limit_bytes": self._limit_bytes,
                "evictions": evictions,
            }  # fmt: skip

    def _make_room(self, shelf: _Shelf) -> None:
        """Give the shelf a free slot: a new block, or the slot or block of entries that go."""
        if self._bytes() + shelf.block_bytes > self._limit_bytes:
            largest = max(self._shelves.values(), key=lambda one: one.size)
            if shelf.size and shelf.size + shelf.block_bytes > self._limit_bytes // len(self._shelves):
                shelf.evict()
                self._evictions += 1
                return
            while largest.size and self._bytes() + shelf.block_bytes > self._limit_bytes:
                self._evictions += largest.drop_block()
                largest = max(self._shelves.values(), key=lambda one: one.size)
        shelf.grow()

    def _bytes(self) -> int:
        return sum(shelf.size for shelf in self._shelves.values())

    def _expiry(self) -> float:
        if not self._lifetime_s:
            return float("inf")
        return time.monotonic() + self._lifetime_s * random.uniform(1 - _JITTER, 1 + _JITTER)


def _moments(left_s: Sequence[float]) -> list[float]:
    now = time.monotonic()
    return [now + left for left in left_s]


def _entry_bytes(dimension: int) -> int:
    return 4 * dimension + OVERHEAD_BYTES


class _Block:
    """Rows that are allocated together."""

    def __init__(self, rows: int, dimension: int) -> None:
        self.rows = np.empty((rows, dimension), np.float32)
        self.token_counts = np.zeros(rows, np.int32)
        self.expiries = np.zeros(rows, np.float64)
        self.keys: list[bytes | None] = [None] * rows
        self.used = bytearray(rows)
        """1 for an entry that was read since the hand passed it."""


class _Shelf:
    """One model's vectors, in blocks. Not thread-safe."""

    def __init__(self, dimension: int, block_rows: int) -> None:
        self.slots: dict[bytes, tuple[_Block, int]] = {}
        self.block_bytes = block_rows * _entry_bytes(dimension)
        self._dimension, self._block_rows = dimension, block_rows
        self._blocks: list[_Block] = []
        self._free: list[tuple[_Block, int]] = []
        self._hand = (0, 0)

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return len(self._blocks) * self.block_bytes

    def get(self, keys: Sequence[bytes], now: float) -> Found | None:
        positions, places = [], []
        for position, key in enumerate(keys):
            place = self.slots.get(key)
            if place is None:
                continue
            block, at = place
            if block.expiries[at] <= now:
                self._remove(block, at)
                continue
            block.used[at] = 1
            positions.append(position)
            places.append(place)
        if not positions:
            return None
        rows = np.empty((len(places), self._dimension), np.float32)
        for number, (block, at) in enumerate(places):
            rows[number] = block.rows[at]
        return Found(positions, rows, [int(block.token_counts[at]) for block, at in places])

    def remove(self, key: bytes) -> bool:
        """Drop a key; whether it was there."""
        place = self.slots.get(key)
        if place is not None:
            self._remove(*place)
        return place is not None

    def has_room(self, key: bytes) -> bool:
        return bool(self._free) or key in self.slots

    def put(self, key: bytes, row: np.ndarray, tokens: int, expiry: float) -> None:
        block, at = self.slots.get(key) or self._free.pop()
        block.rows[at], block.token_counts[at], block.expiries[at] = row, tokens, expiry
        block.keys[at] = key
        self.slots[key] = block, at

    def grow(self) -> None:
        block = _Block(self._block_rows, self._dimension)
        self._blocks.append(block)
        self._free += [(block, at) for at in reversed(range(self._block_rows))]

    def evict(self) -> None:
        """Drop the next entry that was not used since the hand passed it last."""
        number, at = self._hand
        while True:
            if at == self._block_rows:
                number, at = number + 1, 0
            number %= len(self._blocks)
            block = self._blocks[number]
            if block.used[at]:
                block.used[at] = 0
            elif block.keys[at] is not None:
                self._remove(block, at)
                self._hand = number, at + 1
                return
            at += 1

    def drop_block(self) -> int:
        """Drop the block that the hand comes to next; returns the number of its entries."""
        block = self._blocks.pop(self._hand[0] % len(self._blocks))
        self._hand = self._hand[0], 0
        keys = [key for key in block.keys if key is not None]
        for key in keys:
            del self.slots[key]
        self._free = [place for place in self._free if place[0] is not block]
        return len(keys)

    def _remove(self, block: _Block, at: int) -> None:
        key = block.keys[at]
        assert key is not None
        del self.slots[key]
        block.keys[at] = None
        block.used[at] = 0
        self._free.append((block, at))
