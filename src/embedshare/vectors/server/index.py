"""One index: rows that are searched exactly, and later an approximate structure for most of them."""

from __future__ import annotations

import threading

import numpy as np

from embedshare.errors import InvalidInput, UnknownIndex
from embedshare.vectors import exact, kinds
from embedshare.vectors.server.approximate import Approximate

#: The share of removed vectors, or of ones added after the build, beyond which an index is to be rebuilt.
WORN = 0.25


class Index:
    """Vectors by growing ids.

    It answers from the first vector on: exactly, until `build` has made the structure of its kind. Vectors
    added later are searched exactly, next to that structure. Removed vectors stay in memory but not in
    answers. Thread-safe; a search sees the vectors of one moment.
    """

    def __init__(self, dimension: int, metric: str, kind: str) -> None:
        self.dimension = dimension
        self.metric = metric
        self.kind = kind
        """As it was asked for, auto included."""
        self.version: int | None = None
        """Which of its client's versions it is, as the last change said; None where that is none."""
        self._lock = threading.Lock()
        self._base: Approximate | None = None
        self._rows = np.empty((0, dimension), np.float32)  # those outside the base
        self._ids = np.empty(0, np.int64)
        self._dead = np.zeros(0, bool)
        self._count = 0
        self._removed = 0

    def __len__(self) -> int:
        return self._count - self._removed

    @property
    def count(self) -> int:
        """Added vectors, removed ones included."""
        return self._count

    @property
    def built_kind(self) -> str:
        """The kind of search that most of it has now."""
        return self._base.kind if self._base else kinds.FLAT

    @property
    def built(self) -> bool:
        """Whether the structure for its kind and size is built."""
        if self._base is not None or (self.kind == kinds.AUTO and exact.faiss() is None):
            return True
        return kinds.resolve(self.kind, self._count, self.dimension) == kinds.FLAT

    @property
    def recall(self) -> float:
        """Recall at 10, against exact search, on its own vectors; 1 for exact search."""
        return self._base.recall if self._base else 1.0

    @property
    def nbytes(self) -> int:
        """The bytes that it holds."""
        with self._lock:
            own = self._rows.nbytes + self._ids.nbytes + self._dead.nbytes
            return own + (self._base.nbytes if self._base else 0)

    @property
    def worn(self) -> bool:
        """Whether so much was added or removed that it should be rebuilt."""
        later = self._count - self._base.count if self._base else 0
        grown = self._base is not None and later > WORN * self._base.count
        return bool(grown or self._removed > WORN * self._count)

    def reserve(self, count: int) -> None:
        """Have room for this many vectors; memory is taken as they arrive."""
        with self._lock:
            before = self._base.count if self._base else 0
            self._rows = _with_room(self._rows, self._count - before, count - before)
            self._ids = _with_room(self._ids, self._count, count)
            self._dead = _with_room(self._dead, self._count, count)

    def add(self, ids: np.ndarray, vectors: np.ndarray, version: int | None = None) -> None:
        """Add finite float32 (n, dimension) under growing int64 ids, after which it is of that version.

        Raises InvalidInput, and then nothing was added.
        """
        rows = self._checked(vectors)
        if len(ids) != len(rows):
            raise InvalidInput(f"there are {len(ids):,} ids for {len(rows):,} vectors")
        if not len(ids):
            self.version = version
            return
        with self._lock:
            last = self._ids[self._count - 1] if self._count else -1
            if ids[0] <= last or (np.diff(ids) <= 0).any():
                raise InvalidInput("the ids of an index must grow from one vector to the next, from 0 on")
            start, end = self._count, self._count + len(ids)
            before = self._base.count if self._base else 0
            self._rows = _with_room(self._rows, start - before, end - before)
            self._ids, self._dead = _with_room(self._ids, start, end), _with_room(self._dead, start, end)
            self._rows[start - before : end - before] = rows
            self._ids[start:end] = ids
            self._dead[start:end] = False
            self._count = end
            self.version = version

    def remove(self, ids: np.ndarray, version: int | None = None) -> int:
        """Leave these out of answers, after which it is of that version; returns how many it had."""
        with self._lock:
            known = self._ids[: self._count]
            at = np.unique(np.searchsorted(known, ids))
            at = at[at < self._count]
            at = at[np.isin(known[at], ids) & ~self._dead[at]]
            dead = self._dead.copy()  # a running search holds the old one
            dead[at] = True
            self._dead = dead
            self._removed += len(at)
            self.version = version
            return len(at)

    def search(
        self, vectors: np.ndarray, k: int, version: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best for each of the vectors (q, dimension), best first: int64 ids and float32 scores.

        Both are (q, k), or (q, len(self)) if that is less. Raises InvalidInput; UnknownIndex if it is not of
        `version`, where None is any.
        """
        queries = self._checked(vectors)
        if k < 1:
            raise InvalidInput(f"k is {k}; it must be at least 1")
        with self._lock:
            if version not in (None, self.version):
                raise UnknownIndex("the index was changed since its version was read")
            base, count, removed = self._base, self._count, self._removed
            rows = self._rows[: count - (base.count if base else 0)]
            ids, dead = self._ids[:count], self._dead[:count]
        k = min(k, count - removed)
        fetch = min(count, k + min(removed, k))
        while True:
            scores, positions = self._nearest(base, rows, queries, fetch)
            if not removed:
                break
            alive = ~dead[positions]
            if fetch == count or (alive.sum(axis=1) >= k).all():
                order = np.argsort(~alive, axis=1, kind="stable")[:, :k]
                scores = np.take_along_axis(scores, order, axis=1)
                positions = np.take_along_axis(positions, order, axis=1)
                break
            fetch = min(count, 2 * fetch + 8)
        return ids[positions], scores

    def build(self) -> None:
        """Build the kind's structure over the present vectors; vectors may come and go meanwhile."""
        with self._lock:
            rows, count = self._rows[: self._count], self._count
        if self.built:
            return
        base = Approximate(kinds.resolve(self.kind, count, self.dimension), rows, self.metric)
        with self._lock:
            self._base = base
            self._rows = self._rows[count : self._count].copy()

    def _nearest(
        self, base: Approximate | None, rows: np.ndarray, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        later = exact.search(rows, queries, min(k, len(rows)), self.metric)
        if base is None:
            return later
        first = base.search(queries, min(k, base.count))
        scores = np.concatenate([first[0], later[0]], axis=1)
        positions = np.concatenate([first[1], later[1] + base.count], axis=1)
        order = np.argsort(-scores if kinds.higher_is_better(self.metric) else scores, axis=1, kind="stable")
        order = order[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise InvalidInput(
                f"vectors of shape {vectors.shape} do not fit an index of {self.dimension} dimensions"
            )
        rows = np.ascontiguousarray(vectors, np.float32)
        if not np.isfinite(rows).all():
            raise InvalidInput("the vectors hold values that are not finite")
        return exact.unit(rows) if self.metric == "cosine" else rows


def _with_room(array: np.ndarray, filled: int, size: int) -> np.ndarray:
    """The array, or a larger copy of it, with room for `size` items; a search may still read the old one."""
    if size <= len(array):
        return array
    larger = np.zeros((max(size, int(1.25 * len(array))), *array.shape[1:]), array.dtype)
    larger[:filled] = array[:filled]
    return larger
