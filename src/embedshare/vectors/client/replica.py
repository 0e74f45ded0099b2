"""A handle's connection to its index in the model server: its name there, and its transfer."""

from __future__ import annotations

import os
import secrets
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from embedshare.backoff import Backoff
from embedshare.calls import CallContext, EmbedRequest, EmbedResult
from embedshare.errors import IndexIncomplete, ServerUnavailable, UnknownIndex
from embedshare.identity import ModelDescription
from embedshare.providers.base import IndexCopy, Indexes, IndexPiece
from embedshare.vectors import kinds
from embedshare.vectors.client.snapshot import IndexSnapshot

T = TypeVar("T")

#: The largest piece of vectors sent to the server, in bytes.
PIECE_BYTES = 8 << 20
#: Transfers of an index before an error, if servers end meanwhile.
TRIES = 5
#: Pauses of a caller that waits for another's transfer of an index.
PAUSES = Backoff(0.01, 0.25)


class Model(Protocol):
    """The handle's view of the client that made it."""

    @property
    def released(self) -> deque[bytes]:
        """Indexes whose handles are gone: the server is told with the next call."""

    def embed_documents(self, docs: list[str], show_progress_bar: bool | None) -> EmbedResult: ...

    def query(self, text: str, truncate_dim: int | None) -> EmbedRequest: ...

    def describe(self) -> ModelDescription: ...

    def deadline(self) -> float: ...

    def ask_of_index(self, method: str, ask: Callable[[Indexes, CallContext], T], deadline: float) -> T: ...

    @property
    def piece_bytes(self) -> int: ...


class Replica:
    """An index in the model server, as one handle knows it.

    The handle ensures that one thread at a time changes it.
    """

    def __init__(
        self,
        model: Model,
        identity: str,
        metric: kinds.Metric,
        kind: kinds.Kind,
        dimension: int,
        shared_name: bytes | None = None,
    ) -> None:
        self._model = model
        self._identity, self._metric, self._kind, self._dimension = identity, metric, kind, dimension
        self._count = 0  # this index's vectors there, also those removed since the transfer
        self.told = 0
        """How often the server was sent the index or a change of it."""
        self.sent = False
        self.name = b""
        self._shared, self._pid = False, 0
        self._finalizer: Any = None
        self._take_name(shared_name or secrets.token_bytes(16), shared=shared_name is not None)

    def of(self, contents: IndexSnapshot) -> IndexCopy:
        """The index with these contents, in the form of calls."""
        return IndexCopy(self.name, self._identity, self._metric, self._kind, contents)

    def share(self) -> bytes:
        """The name, which other processes may use from now on; its contents stay unchanged."""
        if not self._shared:
            self.become_owner()
            self._shared = True
            self._finalizer.detach()
        return self.name

    def become_owner(self) -> None:
        """Before a change: take another name, so that the shared index stays as it is."""
        if self._has_others:
            self._take_name(secrets.token_bytes(16))
            self.sent = False

    def send(self, contents: IndexSnapshot, deadline: float | None) -> None:
        """Have the server hold these contents.

        Without a deadline each piece has a call's own. Raises IndexIncomplete while another process sends
        them.
        """
        if not (self._has_others and self._is_there(contents, deadline or self._model.deadline())):
            self._put_all(contents, deadline)
        self.sent = True
        self.told += 1

    def add(self, contents: IndexSnapshot, first: int, deadline: float) -> None:
        """Send the vectors from number `first` on, to add to the others there.

        Raises UnknownIndex if those are missing.
        """
        if self.sent:
            self._put(contents, first, self._count, deadline)
            self.told += 1

    def remove(self, contents: IndexSnapshot, before: int, ids: list[int], deadline: float) -> None:
        """Have the server, which holds version `before`, remove these."""
        if not self.sent or 9 * len(ids) + 256 > self._model.piece_bytes:
            return  # the server has an earlier version, which the next search replaces
        index = self.of(contents)
        self._model.ask_of_index(
            "remove", lambda indexes, context: indexes.remove(index, before, ids, context), deadline
        )
        self.told += 1

    @property
    def _has_others(self) -> bool:
        return self._shared or self._pid != os.getpid()

    def _is_there(self, contents: IndexSnapshot, deadline: float) -> bool:
        """Whether another process has sent this index; if that one has changed since, this one takes a new
        name."""
        index = self.of(contents)
        try:
            described = self._model.ask_of_index(
                "inspect", lambda indexes, context: indexes.describe(index, context), deadline
            )
        except IndexIncomplete:
            raise
        except UnknownIndex:
            return False
        if described["version"] != contents.version:
            self.become_owner()
            return False
        return True

    def _put_all(self, contents: IndexSnapshot, deadline: float | None) -> None:
        for _ in range(TRIES):
            try:
                return self._put(contents, 0, 0, deadline)
            except IndexIncomplete:
                raise
            except UnknownIndex:  # the connection broke between two pieces, or the model was swapped
                if self._model.describe().identity != self._identity:
                    return  # the handle detects and reports it
        raise ServerUnavailable(f"the model server lost the index {TRIES} times during its upload")

    def _put(self, contents: IndexSnapshot, first: int, start: int, deadline: float | None) -> None:
        """Send the vectors from number `first` on, which are the server's from `start` on."""
        ids, rows = contents.ids[first:], contents.embeddings[first:]
        total = start + len(ids)
        most = max(1, min(PIECE_BYTES, self._model.piece_bytes) // (8 + 4 * self._dimension))
        pieces = [slice(at, at + most) for at in range(0, max(1, len(ids)), most)]
        if start == 0 and self._has_others:
            pieces.insert(0, slice(0, 0))  # of several holders the first to announce it sends it
        index = self.of(contents)
        for at in pieces:
            piece = IndexPiece(ids[at], rows[at], start + at.start, total)

            def put(indexes: Indexes, context: CallContext, piece: IndexPiece = piece) -> int:
                return indexes.put(index, piece, context)

            if self._model.ask_of_index("put", put, deadline or self._model.deadline()) >= total:
                break  # it is whole, or another process has sent the rest
        self._count = total

    def _take_name(self, name: bytes, shared: bool = False) -> None:
        self.name, self._shared, self._pid = name, shared, os.getpid()
        self._finalizer = weakref.finalize(self, _release, self._model.released, name, self._pid)
        if shared:  # a shared index is evicted after long disuse
            self._finalizer.detach()


def _release(released: deque[bytes], name: bytes, pid: int) -> None:
    """The garbage collector may call this anywhere: nothing is sent from here."""
    if pid == os.getpid():
        released.append(name)
