"""The indexes that a server holds: bounded in number and bytes; the one that was not used for longest goes
first."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
from loguru import logger

from embedshare.errors import InvalidInput, TooLarge, UnknownIndex
from embedshare.vectors import choice
from embedshare.vectors.index import Index

#: The caller of what is whole and anybody's: callers' numbers begin at 1.
_EVERYBODY = 0
_Key = tuple[int, bytes]


class _Kept:
    def __init__(self, index: Index, identity: str, total: int) -> None:
        self.index = index
        self.identity = identity
        self.total = total
        self.version: int | None = None
        """None while some of what was announced has not come: nobody may search it."""


class Shelf:
    """Indexes by the random ids that their clients gave them.

    One that is not whole yet is its sender's alone. Safe to use from any number of threads; what takes long
    (a search, the making of a graph) holds no lock.
    """

    def __init__(self, max_indexes: int, max_bytes: int) -> None:
        self._max_indexes = max_indexes
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._evicted = 0
        self._to_build: queue.SimpleQueue[Index] = queue.SimpleQueue()
        self._builder: threading.Thread | None = None

    def put(
        self,
        caller: int,
        name: bytes,
        identity: str,
        version: int,
        start: int,
        total: int,
        empty: Index,
        ids: np.ndarray,
        vectors: np.ndarray,
    ) -> int:
        """The next vectors of an index; how many it has now.

        From `start` 0 on they make a new one, in `empty`, which takes its place when `total` have come;
        behind all of a whole one they are added to it. Raises TooLarge, InvalidInput; UnknownIndex where it
        is not at `start`, or of another model.
        """
        if start == 0:
            kept = self._begin((caller, name), empty, identity, total)
        else:
            kept = self._at(caller, name, identity, start)
        index = kept.index
        if vectors.shape[1] != index.dimension:
            raise InvalidInput(
                f"vectors of {vectors.shape[1]} dimensions came to an index of {index.dimension}"
            )
        self._check_size(index, max(total, start + len(ids)))
        index.add(ids, vectors)
        with self._lock:
            kept.total = max(kept.total, total)
            kept.version = version if index.count >= kept.total else None
            self._place(caller, name, kept)
            self._make_room()
        return index.count

    def search(self, name: bytes, identity: str, version: int, query: np.ndarray, k: int) -> Any:
        """See Index.search.

        Raises UnknownIndex where the index is not here, of another model, or another than the caller's.
        """
        return self._whole(name, identity, version).index.search(query, k)

    def remove(self, name: bytes, identity: str, before: int, version: int, ids: np.ndarray) -> int:
        """Remove vectors, by which the index becomes that version; how many there were."""
        kept = self._whole(name, identity, before)
        removed = kept.index.remove(ids)
        with self._lock:
            kept.version = version
            self._drop_if_worn(name, kept)
        return removed

    def check(self, name: bytes, identity: str, version: int) -> None:
        """Raises UnknownIndex, as `search` would."""
        self._whole(name, identity, version)

    def describe(self, name: bytes, identity: str) -> dict[str, Any]:
        """What an index is: its version; count, kind (how it is searched now), built, recall, bytes."""
        kept = self._whole(name, identity, None)
        index = kept.index
        return {
            "version": kept.version,
            "count": len(index),
            "kind": index.built_kind,
            "built": index.built,
            "recall": index.recall,
            "bytes": index.nbytes,
        }

    def forget(self, names: Iterable[bytes]) -> int:
        """Let these go; how many of them were here."""
        with self._lock:
            return sum(self._kept.pop((_EVERYBODY, name), None) is not None for name in names)

    def stats(self) -> dict[str, int]:
        """What is held now, and how many had to make room."""
        with self._lock:
            held = sum(kept.index.nbytes for kept in self._kept.values())
            return {"count": len(self._kept), "bytes": held, "evicted": self._evicted}

    def _begin(self, key: _Key, empty: Index, identity: str, total: int) -> _Kept:
        self._check_size(empty, total)
        empty.reserve(total)
        kept = _Kept(empty, identity, total)
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = kept
        return kept

    def _place(self, caller: int, name: bytes, kept: _Kept) -> None:
        """Within the lock: what is whole is everybody's, unless another process has sent the same already."""
        if self._kept.get((caller, name)) is kept and kept.version is not None:
            del self._kept[caller, name]
            there = self._kept.get((_EVERYBODY, name))
            if there is None or (there.identity, there.version) != (kept.identity, kept.version):
                self._kept[_EVERYBODY, name] = kept
        if self._kept.get((_EVERYBODY, name)) is kept:
            self._build_later(kept.index)
            self._drop_if_worn(name, kept)

    def _at(self, caller: int, name: bytes, identity: str, start: int) -> _Kept:
        """Whichever index of that name these vectors continue."""
        with self._lock:
            for key in ((caller, name), (_EVERYBODY, name)):
                kept = self._kept.get(key)
                if kept is not None and kept.index.count == start and kept.identity == identity:
                    self._kept.move_to_end(key)
                    return kept
        raise UnknownIndex("the model server has no index of which these vectors are the next")

    def _whole(self, name: bytes, identity: str, version: int | None) -> _Kept:
        with self._lock:
            kept = self._kept.get((_EVERYBODY, name))
            known = kept is not None and kept.identity == identity and kept.version is not None
            if kept is not None and known and version in (None, kept.version):
                self._kept.move_to_end((_EVERYBODY, name))
                return kept
        raise UnknownIndex("the model server does not hold this index of the model that it serves")

    def _check_size(self, index: Index, total: int) -> None:
        kind = choice.resolve(index.kind, total, index.dimension)
        size = choice.bytes_of(kind, total, index.dimension)
        if size > self._max_bytes:
            raise TooLarge(
                f"an index of {total:,} vectors of {index.dimension} values takes {size:,} bytes; "
                f"EMBEDDING_MAX_INDEX_BYTES allows {self._max_bytes:,} on the model server"
            )

    def _make_room(self) -> None:
        """Within the lock: let go of the least recently used until the rest fits; the last always stays."""
        held = sum(kept.index.nbytes for kept in self._kept.values())
        while len(self._kept) > 1 and (held > self._max_bytes or len(self._kept) > self._max_indexes):
            _, kept = self._kept.popitem(last=False)
            held -= kept.index.nbytes
            self._evicted += 1
            logger.info("an index of {:,} vectors made room for others", len(kept.index))

    def _drop_if_worn(self, name: bytes, kept: _Kept) -> None:
        """Within the lock: its client, who holds the vectors, sends those that are left anew."""
        if kept.index.worn:
            del self._kept[_EVERYBODY, name]

    def _build_later(self, index: Index) -> None:
        """Within the lock: one thread makes one structure after another."""
        if index.built:
            return
        self._to_build.put(index)
        if self._builder is None:
            self._builder = threading.Thread(target=self._build, name="index-builder", daemon=True)
            self._builder.start()

    def _build(self) -> None:
        while True:
            index = self._to_build.get()
            with self._lock:
                if all(kept.index is not index for kept in self._kept.values()):
                    continue
            try:
                index.build()
            except Exception as error:  # it goes on answering exactly
                logger.error("an index could not be built: {}: {}", type(error).__name__, error)
                continue
            logger.info(
                "an index of {:,} vectors is built: {}, recall {:.3f}, {:,} bytes",
                len(index), index.built_kind, index.recall, index.nbytes,
            )  # fmt: skip
            del index
