"""The server's indexes, bounded in number and bytes; the least recently used one is evicted first."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
from loguru import logger

from embedshare.errors import IndexIncomplete, InvalidInput, TooLarge, UnknownIndex
from embedshare.vectors import kinds
from embedshare.vectors.server.index import Index

#: Seconds of silence after which the sender of an index gives way to another one.
STALL_S = 10.0
#: Seconds after the end of its last user until an index is evicted.
ABANDONED_S = 60.0
#: Seconds between two checks for that.
SWEEP_S = 15.0


class Sender(NamedTuple):
    """A connection that sends vectors."""

    connection: int
    process: Hashable
    is_gone: Callable[[], bool]
    """Whether the connection is closed, without waiting."""


class _StoredIndex:
    def __init__(self, index: Index, identity: str, version: int, total: int, sender: Sender) -> None:
        self.index = index
        self.identity = identity
        self.announced = version
        self.total = total
        self.sender = sender
        self.heard = 0.0
        self.users: set[Hashable] = {sender.process}
        self.unused_since: float | None = None

    @property
    def version(self) -> int | None:
        """None while announced vectors are missing: the index cannot be searched yet."""
        return self.index.version


class IndexStore:
    """Indexes by their clients' random ids.

    One of several clients with the same index sends it, and it is visible once it is whole. Thread-safe; long
    work (a search, a build) holds no lock.
    """

    def __init__(
        self,
        max_indexes: int,
        max_bytes: int,
        is_living: Callable[[Any], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_living`: whether a process that used an index still runs."""
        self._max_indexes = max_indexes
        self._max_bytes = max_bytes
        self._is_living = is_living
        self._clock = clock
        self._lock = threading.Lock()
        self._complete: OrderedDict[bytes, _StoredIndex] = OrderedDict()
        self._coming: dict[bytes, _StoredIndex] = {}
        self._evicted = 0
        self._to_build: queue.SimpleQueue[Index] = queue.SimpleQueue()
        self._tender: threading.Thread | None = None

    def put(
        self,
        sender: Sender,
        name: bytes,
        identity: str,
        version: int,
        start: int,
        total: int,
        empty: Index,
        ids: np.ndarray,
        vectors: np.ndarray,
    ) -> int:
        """The next vectors of an index; returns its new count, `total` if it is here already.

        From `start` 0 on they make a new one, in `empty`, which replaces the old one once `total` have
        arrived. After all vectors of a whole index they are added to it. Raises TooLarge, InvalidInput.
        Raises IndexIncomplete if another connection sends it, or others in transfer leave no room;
        UnknownIndex if it is not at `start`, or of another model.
        """
        if start == 0:
            begun = self._begin_upload(name, _StoredIndex(empty, identity, version, total, sender))
            if begun is None:
                return total
            kept = begun
        else:
            kept = self._at(sender, name, identity, start)
        index = kept.index
        try:
            if vectors.shape[1] != index.dimension:
                raise InvalidInput(
                    f"vectors of {vectors.shape[1]} dimensions do not fit an index of {index.dimension}"
                )
            end = start + len(ids)
            self._check_size(index, max(total, end))
            index.add(ids, vectors, version if end >= max(kept.total, total) else None)
        except InvalidInput:
            with self._lock:
                self._give_up(name, kept)
            raise
        with self._lock:
            kept.total = max(kept.total, total)
            kept.heard = self._clock()
            self._place(name, kept)
            self._make_room(kept)
        return index.count

    def search(
        self, process: Hashable, name: bytes, identity: str, version: int, query: np.ndarray, k: int
    ) -> Any:
        """See Index.search.

        Raises UnknownIndex if the index is not here, of another model, or of another version than the
        caller's; IndexIncomplete while it is being sent.
        """
        return self._find(process, name, identity, version).index.search(query, k, version)

    def remove(
        self, process: Hashable, name: bytes, identity: str, before: int, version: int, ids: np.ndarray
    ) -> int:
        """Remove vectors, after which the index is of that version; returns how many there were."""
        kept = self._find(process, name, identity, before)
        removed = kept.index.remove(ids, version)
        with self._lock:
            self._drop_if_worn(name, kept)
        return removed

    def check(self, process: Hashable, name: bytes, identity: str, version: int) -> None:
        """Raise UnknownIndex and IndexIncomplete, as `search` would."""
        self._find(process, name, identity, version)

    def describe(self, process: Hashable, name: bytes, identity: str) -> dict[str, Any]:
        """An index's version, count, kind (of its present search), built, recall, bytes."""
        kept = self._find(process, name, identity, None)
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
        """Drop these; returns how many existed."""
        with self._lock:
            return sum(self._complete.pop(name, None) is not None for name in names)

    def stats(self) -> dict[str, int]:
        """The number and bytes of held indexes, and the number of evicted ones."""
        with self._lock:
            every = self._every()
            held = sum(kept.index.nbytes for kept in every)
            return {"count": len(every), "bytes": held, "evicted": self._evicted}

    def release_abandoned(self) -> None:
        """Drop uploads without a sender, and indexes whose users have all been gone for ABANDONED_S; a later
        user sends its index again."""
        with self._lock:
            self._drop_stalled()
            users = {user for kept in self._complete.values() for user in kept.users}
        ended = {user for user in users if not self._is_living(user)}
        now = self._clock()
        with self._lock:
            for name, kept in list(self._complete.items()):
                kept.users -= ended
                if kept.users:
                    kept.unused_since = None
                elif kept.unused_since is None:
                    kept.unused_since = now
                elif now - kept.unused_since >= ABANDONED_S:
                    del self._complete[name]
                    logger.info("Evicted an index of {:,} vectors (its users are gone)", len(kept.index))

    def _begin_upload(self, name: bytes, new: _StoredIndex) -> _StoredIndex | None:
        """Accept a new index, with room for all announced vectors; None if it is here already."""
        empty = new.index
        self._check_size(empty, new.total)
        with self._lock:
            there = self._complete.get(name)
            if there is not None and (there.identity, there.version) == (new.identity, new.announced):
                return None
            self._drop_stalled()
            rival = self._coming.get(name)
            if rival is not None and rival.sender.connection != new.sender.connection:
                raise IndexIncomplete("another process is sending this index to the model server")
            self._coming.pop(name, None)
            empty.reserve(new.total)
            coming = sum(kept.index.nbytes for kept in self._coming.values())
            full = coming + empty.nbytes > self._max_bytes or len(self._coming) >= self._max_indexes
            if self._coming and full:
                raise IndexIncomplete("the model server has no room for this index until others are complete")
            new.heard = self._clock()
            self._coming[name] = new
            self._tend_from_now_on()
            self._make_room(new)
        return new

    def _place(self, name: bytes, kept: _StoredIndex) -> None:
        """Within the lock: publish a whole index."""
        if self._coming.get(name) is kept and kept.version is not None:
            del self._coming[name]
            self._complete.pop(name, None)
            self._complete[name] = kept
        if self._complete.get(name) is kept:
            if not kept.index.built:
                self._to_build.put(kept.index)
            self._drop_if_worn(name, kept)

    def _at(self, sender: Sender, name: bytes, identity: str, start: int) -> _StoredIndex:
        """The index of that name that these vectors continue."""
        with self._lock:
            kept = self._coming.get(name)
            if kept is None or kept.sender.connection != sender.connection:
                kept = self._complete.get(name)
            if kept is not None and kept.index.count == start and kept.identity == identity:
                if name in self._complete:
                    self._complete.move_to_end(name)
                kept.heard = self._clock()
                return kept
        raise UnknownIndex("the model server has no index that these vectors continue")

    def _find(self, process: Hashable, name: bytes, identity: str, version: int | None) -> _StoredIndex:
        with self._lock:
            kept = self._complete.get(name)
            known = kept is not None and kept.identity == identity and kept.version is not None
            if kept is not None and known and version in (None, kept.version):
                self._complete.move_to_end(name)
                kept.users.add(process)
                return kept
            coming = self._coming.get(name)
            if (
                coming is not None
                and coming.identity == identity
                and version in (None, coming.announced)
                and self._is_being_sent(coming)
            ):
                raise IndexIncomplete("this index is still being sent to the model server")
        raise UnknownIndex("the model server does not hold this index for the served model")

    def _check_size(self, index: Index, total: int) -> None:
        kind = kinds.resolve(index.kind, total, index.dimension)
        size = kinds.bytes_of(kind, total, index.dimension)
        if size > self._max_bytes:
            raise TooLarge(
                f"an index of {total:,} vectors of {index.dimension} values takes {size:,} bytes; "
                f"EMBEDDING_MAX_INDEX_BYTES allows {self._max_bytes:,} on the model server"
            )

    def _every(self) -> list[_StoredIndex]:
        return [*self._complete.values(), *self._coming.values()]

    def _make_room(self, newest: _StoredIndex) -> None:
        """Within the lock: evict the least recently used until the rest fits.

        Uploads stay, or two senders would evict each other for ever.
        """
        every = self._every()
        count, held = len(every), sum(kept.index.nbytes for kept in every)
        for name, kept in list(self._complete.items()):
            if held <= self._max_bytes and count <= self._max_indexes:
                return
            if kept is newest:
                continue
            del self._complete[name]
            count, held = count - 1, held - kept.index.nbytes
            self._evicted += 1
            logger.info("Evicted an index of {:,} vectors (to make room)", len(kept.index))

    def _is_being_sent(self, kept: _StoredIndex) -> bool:
        return self._clock() - kept.heard < STALL_S and not kept.sender.is_gone()

    def _drop_stalled(self) -> None:
        """Within the lock: drop stalled uploads, so that another connection may send them."""
        for name, kept in list(self._coming.items()):
            if not self._is_being_sent(kept):
                del self._coming[name]

    def _give_up(self, name: bytes, kept: _StoredIndex) -> None:
        """Within the lock: drop an index that cannot become whole, so that no caller waits for it."""
        if self._coming.get(name) is kept:
            del self._coming[name]

    def _drop_if_worn(self, name: bytes, kept: _StoredIndex) -> None:
        """Within the lock: drop a worn index; its client, which holds the vectors, sends the remaining ones
        again."""
        if kept.index.worn and self._complete.get(name) is kept:
            del self._complete[name]

    def _tend_from_now_on(self) -> None:
        """Within the lock: start the one thread that builds structures in turn, and drops abandoned
        indexes."""
        if self._tender is None:
            self._tender = threading.Thread(target=self._tend, name="index-tender", daemon=True)
            self._tender.start()

    def _tend(self) -> None:
        swept = self._clock()
        while True:
            try:
                self._build(self._to_build.get(timeout=SWEEP_S))
            except queue.Empty:
                pass
            if self._clock() - swept >= SWEEP_S:
                self.release_abandoned()
                swept = self._clock()

    def _build(self, index: Index) -> None:
        with self._lock:
            if all(kept.index is not index for kept in self._complete.values()):
                return
        try:
            index.build()
        except Exception as error:  # it keeps answering exactly
            logger.error("Could not build an index: {}: {}", type(error).__name__, error)
            return
        logger.info(
            "Built an index of {:,} vectors: {}, recall {:.3f}, {:,} bytes",
            len(index), index.built_kind, index.recall, index.nbytes,
        )  # fmt: skip
