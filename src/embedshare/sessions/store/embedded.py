"""A store's engine in this process: qdrant-edge-py, a shard in a folder of its own.

The engine locks for itself: threads may call it at once, and a search does not hold the interpreter. Its
traps that this file and its neighbours take care of are listed in `tests/sessions/store/test_traps.py`.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from embedshare import platforms, private_file
from embedshare.errors import MissingDependency, ModelMismatch, StoreFailed, StoreInUse
from embedshare.sessions.store import metadata
from embedshare.sessions.store.engine import SPARSE, Engine, Hit, Record
from embedshare.sessions.store.filters import FilterTypes, Where, translated
from embedshare.sessions.store.weights import Weights

_NOTE, _SHARD, _LOCK = "store.json", "shard", "lock"
#: Vectors are searched exactly. In KB, more than any segment has: above it the engine would build an
#: approximate index, for a minute or more in which it answers nothing.
_NEVER_INDEXED_KB = 1 << 40
#: Points written between two flushes. The engine's log keeps those after the last one, and opening runs it
#: again: 50,000 points took 2 s. A flush holds up searches: 0.2 to 0.6 s at 100,000 points.
_FLUSH_POINTS = 20_000
_PAGE = 1000


class StoreNote(msgspec.Struct, frozen=True):
    """The file beside the shard: whose vectors it has."""

    identity: str
    dimension: int
    distance: str = "cosine"
    sparse: str | None = None
    """The identity of the model of its sparse vectors."""


def opened(folder: Path, identity: str, dimension: int, sparse: str | None = None) -> Engine:
    """The engine of a folder, new or as it was closed. Raises as `base.open_embedded`."""
    library = _library()
    try:
        return _opened(library, folder, StoreNote(identity, dimension, sparse=sparse))
    except OSError as error:
        raise StoreFailed(f"sessions' vectors cannot be kept in {folder}: {error.strerror}") from None


def _opened(library: ModuleType, folder: Path, wanted: StoreNote) -> Engine:
    lock = _locked(folder)
    try:
        note = _note(folder)
        if note is not None and note != wanted:
            raise ModelMismatch(
                f"the vectors in {folder} are of other models, or of another dimension or distance",
                expected=wanted.identity, found=note.identity,
            )  # fmt: skip
        shard = (_loaded if note else _created)(library, folder / _SHARD, wanted)
        if note is None:
            private_file.replace(folder / _NOTE, msgspec.json.encode(wanted))
        return EdgeEngine(library, shard, lock)
    except BaseException:
        lock.release()
        raise


class EdgeEngine(Engine):
    """A shard, which this owns, and the lock of its folder."""

    def __init__(self, library: ModuleType, shard: Any, lock: FileLock) -> None:
        self._library, self._shard, self._lock = library, shard, lock
        self._types = FilterTypes(
            library.Filter, library.FieldCondition, library.MatchValue, library.MatchAny, library.RangeFloat,
            library.RangeDateTime,
        )  # fmt: skip
        self._unflushed = 0
        self._counting = threading.Lock()

    def index(self, key: str, kind: str) -> None:
        own = getattr(self._library.PayloadSchemaType, metadata.index_kind(kind).title())
        self._update(self._library.UpdateOperation.create_field_index(key, own))

    def upsert(self, records: Sequence[Record]) -> None:
        points = [self._library.Point(each.id, self._vectors(each), each.payload) for each in records]
        self._update(self._library.UpdateOperation.upsert_points(points))
        self._flush_after(len(points))

    def delete(self, where: Where) -> None:
        chosen = translated(where, self._types)
        assert chosen is not None, "a filter without conditions would delete everything"
        self._update(self._library.UpdateOperation.delete_points_by_filter(chosen))

    def nearest(self, vector: list[float] | Weights, limit: int, where: Where) -> list[Hit]:
        query, name = self._query(vector)
        request = self._library.QueryRequest(
            limit=limit,
            query=self._library.Query.Nearest(query, using=name),
            filter=translated(where, self._types),
            with_payload=True,
            params=self._library.SearchParams(exact=True),
        )
        with _told():
            return [Hit(each.score, each.payload) for each in self._shard.query(request)]

    def count(self, where: Where) -> int:
        with _told():
            request = self._library.CountRequest(exact=True, filter=translated(where, self._types))
            return int(self._shard.count(request))

    def values(self, key: str, where: Where) -> dict[str, int]:
        limit = max(self.count(where), 1)
        request = self._library.FacetRequest(key, limit, True, translated(where, self._types))
        with _told():
            return {hit.value: hit.count for hit in self._shard.facet(request)}

    def payloads(self, where: Where) -> Iterator[dict[str, Any]]:
        offset = None
        while True:
            request = self._library.ScrollRequest(offset, _PAGE, translated(where, self._types), True, False)
            with _told():
                records, offset = self._shard.scroll(request)
            yield from (record.payload for record in records)
            if offset is None:
                return

    def close(self) -> None:
        with _told():
            self._shard.close()
        self._lock.release()

    def _vectors(self, record: Record) -> Any:
        if record.sparse is None:
            return record.vector
        return {"": record.vector, SPARSE: self._sparse(record.sparse)}

    def _query(self, vector: list[float] | Weights) -> tuple[Any, str | None]:
        """The engine's own form of a query, and the name of the vectors that it is for."""
        return (self._sparse(vector), SPARSE) if isinstance(vector, Weights) else (vector, None)

    def _sparse(self, weights: Weights) -> Any:
        return self._library.SparseVector(weights.indices.tolist(), weights.values.tolist())

    def _update(self, operation: Any) -> None:
        with _told():
            self._shard.update(operation)

    def _flush_after(self, points: int) -> None:
        with self._counting:
            self._unflushed += points
            if self._unflushed < _FLUSH_POINTS:
                return
            self._unflushed = 0
        with _told():
            self._shard.flush()


def _library() -> ModuleType:
    try:
        import qdrant_edge
    except ImportError as error:
        raise MissingDependency(
            "an embedded store of sessions needs a package that is not installed "
            f"({error}): pip install 'embedshare[sessions]'"
        ) from None
    return qdrant_edge


def _locked(folder: Path) -> FileLock:
    """The folder's lock. The engine has one too, which it takes late and tells of unclearly."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fault = platforms.fault_of_trust(folder.stat(), 0o077)
    if fault is not None:
        raise PermissionError(errno.EPERM, f"others can read or own the folder ({fault}; chmod 700)")
    lock = FileLock(folder / _LOCK, mode=0o600, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StoreInUse(
            f"another process has the sessions' vectors in {folder} open: stop it, or name another folder"
        ) from None
    return lock


def _note(folder: Path) -> StoreNote | None:
    try:
        return msgspec.json.decode((folder / _NOTE).read_bytes(), type=StoreNote)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise StoreFailed(f"{folder / _NOTE} is damaged ({error}): delete the folder") from None


def _created(library: ModuleType, path: Path, note: StoreNote) -> Any:
    """A new shard. One without a note was left by a process that was killed before it stored anything."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    with _told():
        return library.EdgeShard.create(str(path), _configuration(library, note))


def _loaded(library: ModuleType, path: Path, note: StoreNote) -> Any:
    """The shard as it was left. Opening is when the space of deleted points is freed, if they are a fifth."""
    with _told():
        shard = library.EdgeShard.load(str(path), _configuration(library, note))
        shard.optimize()
    return shard


def _configuration(library: ModuleType, note: StoreNote) -> Any:
    """One search thread a shard: by default each starts one for each processor."""
    return library.EdgeConfig(
        vectors=library.EdgeVectorParams(size=note.dimension, distance=library.Distance.Cosine),
        sparse_vectors=None if note.sparse is None else {SPARSE: library.EdgeSparseVectorParams()},
        optimizers=library.EdgeOptimizersConfig(indexing_threshold=_NEVER_INDEXED_KB),
        max_search_threads=1,
    )


@contextmanager
def _told() -> Iterator[None]:
    """Turn the engine's errors, each a bare Exception, into ours."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        if "WouldBlock" in str(error):
            raise StoreInUse("another process has these sessions' vectors open") from None
        raise StoreFailed(f"the embedded vector engine failed: {error}") from None
