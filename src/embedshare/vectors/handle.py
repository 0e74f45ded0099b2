"""The handle of a vector index: what the caller holds, while the index itself is in the model server.

The handle keeps the embeddings, so that a server that does not have the index (any more) gets it again
without embedding anything, and so that a local model can answer while the server is away.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np

from embedshare import platforms
from embedshare.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelMismatch,
    Overloaded,
    ServerUnavailable,
    UnknownIndex,
)
from embedshare.fallback import Both
from embedshare.identity import ModelDescription
from embedshare.ipc import codec
from embedshare.telemetry import request_ids
from embedshare.vectors import choice, exact, saved
from embedshare.vectors.documents import metadata_of

T = TypeVar("T")
#: Vectors go to the server in pieces of at most this many bytes.
PIECE_BYTES = 8 << 20
#: An index is sent so often at one time, where servers end meanwhile.
TRIES = 5


class Embedded(NamedTuple):
    """Documents' vectors, and the model that made them."""

    rows: np.ndarray
    identity: str


class Model(Protocol):
    """What a handle needs of the client that made it."""

    released: deque[bytes]
    """Indexes whose handles are gone: the server is told with the next call."""

    def embed_documents(self, docs: list[str], show_progress_bar: bool | None) -> Embedded: ...

    def query_prompt(self) -> str: ...

    def describe(self) -> ModelDescription: ...

    def deadline(self) -> float: ...

    def ask_of_index(self, method: str, both: Both[Any], deadline: float) -> Any: ...

    @property
    def piece_bytes(self) -> int: ...


class _At(NamedTuple):
    """Which index a search asks for, and how often it had been sent by then."""

    name: bytes
    version: int
    sent: int


class VectorIndex:
    """A vector index of documents, kept by the model server.

    `len(index)` documents; `metadata` and `embeddings` (float32, (n, dimension)) are theirs in the same
    order. `add` and `remove` change all of them. Safe to use from any number of threads; a forked child's is
    its own as soon as it changes it.
    """

    def __init__(
        self,
        model: Model,
        embedded: Embedded,
        metadata: list[dict[str, Any]],
        *,
        metric: str,
        kind: str,
        truncate_dim: int | None = None,
        shared_name: bytes | None = None,
    ) -> None:
        self.metric, self.kind = choice.check(metric, kind)
        self.identity = embedded.identity
        """The model whose vectors these are."""
        self.embeddings = embedded.rows
        self.metadata = metadata
        self._model = model
        self._truncate_dim = truncate_dim
        self._ids = np.arange(len(metadata), dtype=np.int64)
        self._next_id = len(metadata)
        self._version = 0
        self._sent = 0
        self._on_server = 0  # vectors of this index there, those too that were removed since it was sent
        self._unit: tuple[int, np.ndarray] | None = None
        self._begin()
        self._take_name(shared_name or secrets.token_bytes(16), shared=shared_name is not None)
        _living.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"<VectorIndex of {len(self)} documents, {self.metric}, {self.kind}>"

    @property
    def dimension(self) -> int:
        """Values of a vector."""
        return int(self.embeddings.shape[1])

    @property
    def ids(self) -> list[int]:
        """The documents' numbers, in order; a removed one's is never given again."""
        ids: list[int] = self._ids.tolist()
        return ids

    @property
    def recall(self) -> float:
        """Recall at 10 against exact search, measured on vectors of its own when the index was built."""
        return float(self.describe()["recall"])

    def describe(self) -> dict[str, Any]:
        """How the index is kept where searches are answered: `count`; `kind`, how it is searched now;
        `built`, false while what its kind asks for is still being made and it is searched exactly; `recall`;
        `bytes`."""
        deadline = self._model.deadline()
        local = {"count": len(self), "kind": choice.FLAT, "built": True, "recall": 1.0, "bytes": 0}

        def ask(at: _At) -> dict[str, Any]:
            both: Both[dict[str, Any]] = Both(
                lambda call_id, left: codec.Inspect(call_id, left, at.name),
                lambda reply: {name: value for name, value in reply.items() if name != "version"},
                lambda engine, deadline: local,
            )
            found: dict[str, Any] = self._model.ask_of_index("inspect", both, deadline)
            return found

        return self._asked(ask, deadline)

    def search(self, query: str, top_k: int = 3) -> tuple[list[int], list[float]]:
        """The ids and scores of the `top_k` documents nearest to a text, best first; of all, where there are
        fewer.

        Scores: squared L2 distance (lower is better), cosine or inner product (higher is better). One round
        trip. Raises InvalidInput, ModelMismatch, and what `encode` raises.
        """
        if not isinstance(query, str):
            raise InvalidInput(f"the query must be a str, not {type(query).__name__}")
        k = _positive(top_k)
        deadline = self._model.deadline()
        prompt = self._model.query_prompt()

        def ask(at: _At) -> tuple[np.ndarray, np.ndarray]:
            both: Both[tuple[np.ndarray, np.ndarray]] = Both(
                lambda call_id, left: codec.Search(
                    call_id, left, at.name, at.version, query, prompt, k, self._truncate_dim,
                    request_ids.current(),
                ),
                lambda answer: answer[0],
                lambda engine, deadline: self._search_here(engine, query, prompt, k, deadline),
            )  # fmt: skip
            found: tuple[np.ndarray, np.ndarray] = self._model.ask_of_index("search", both, deadline)
            return found

        ids, scores = self._asked(ask, deadline)
        return ids.tolist(), scores.tolist()

    def add(
        self,
        docs: Sequence[str],
        urls: Sequence[str] | None = None,
        *,
        show_progress_bar: bool | None = None,
    ) -> list[int]:
        """Embed documents and add them; their ids.

        Raises InvalidInput, ModelMismatch, TooLarge, and what `encode` raises: then nothing has changed, but
        for TooLarge.
        """
        docs = list(docs)
        metadata = metadata_of(docs, urls)
        self._check_model()
        embedded = self._model.embed_documents(docs, show_progress_bar)
        if embedded.identity != self.identity:
            raise self._mismatch(embedded.identity)
        deadline = self._model.deadline()
        with self._alone(deadline):
            self._be_owner()
            start = len(self._ids)
            new = np.arange(self._next_id, self._next_id + len(docs), dtype=np.int64)
            for number, entry in zip(new.tolist(), metadata, strict=True):
                entry["id"] = number
            self._ids = np.concatenate([self._ids, new])
            self.embeddings = np.concatenate([self.embeddings, embedded.rows])
            self.metadata += metadata
            self._next_id += len(docs)
            self._version += 1
            if self._sent and len(docs):
                try:
                    self._put(start, self._on_server, deadline)
                except (UnknownIndex, ServerUnavailable, DeadlineExceeded, Overloaded):
                    pass  # what the server has is of an earlier version now: the next search sends all
        return new.tolist()

    def remove(self, ids: Sequence[int]) -> int:
        """Remove documents by their ids; how many of them there were."""
        numbers = _ids(ids)
        deadline = self._model.deadline()
        with self._alone(deadline):
            keep = ~np.isin(self._ids, np.array(numbers, np.int64))
            removed = self._ids[~keep].tolist()
            if not removed:
                return 0
            self._be_owner()
            before, self._version = self._version, self._version + 1
            self._ids, self.embeddings = self._ids[keep], self.embeddings[keep]
            self.metadata[:] = [entry for entry, kept in zip(self.metadata, keep, strict=True) if kept]
            if self._sent:
                name, version = self._name, self._version
                both: Both[int] = Both(
                    lambda call_id, left: codec.Remove(call_id, left, name, before, version, removed),
                    lambda count: count,
                    lambda engine, deadline: 0,
                )
                try:
                    self._model.ask_of_index("remove", both, deadline)
                except (UnknownIndex, ServerUnavailable, DeadlineExceeded, Overloaded):
                    pass  # as in `add`
        return len(removed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write embeddings, metadata and the model's identity into one file, which `load` reads.

        Processes that load the same file share one index in the server. Raises OSError.
        """
        with self._alone(self._model.deadline()):
            about = saved.About(
                saved.FORM, secrets.token_bytes(16).hex(), self.identity, self._model.describe().model_name,
                self.metric, self.kind, self._truncate_dim, self._next_id, self.metadata,
            )  # fmt: skip
            saved.write(path, about, self._ids, self.embeddings)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model) -> VectorIndex:
        """The index that `save` wrote, for this client (`EmbeddingClient`).

        Raises IndexCorrupted, ModelMismatch where it is of another vector space, OSError.
        """
        about, ids, embeddings = saved.read(path)
        try:
            index = cls(
                model, Embedded(embeddings, about.identity), about.metadata, metric=about.metric,
                kind=about.kind, truncate_dim=about.truncate_dim, shared_name=bytes.fromhex(about.name),
            )  # fmt: skip
        except ValueError as error:
            raise saved.corrupted(path, error) from None
        index._check_model()
        index._ids, index._next_id = ids, about.next_id
        return index

    def send(self) -> None:
        """Have the server hold the index, where the server answers calls."""
        self._send_unless_sent(self._at(), None)

    def _at(self) -> _At:
        return _At(self._name, self._version, self._sent)

    def _asked(self, ask: Callable[[_At], T], deadline: float) -> T:
        """The answer of a server that has the index, which gets it where it has it not."""
        while True:
            self._check_model()
            at = self._at()
            try:
                return ask(at)
            except UnknownIndex:
                self._send_unless_sent(at, deadline)

    def _send_unless_sent(self, at: _At, deadline: float | None) -> None:
        """Of several who found that the server does not have the index, the first sends it.

        Without a deadline each piece has a call's own.
        """
        with self._alone(self._model.deadline() if deadline is None else deadline):
            if self._at() != at:
                return
            self._check_model()
            others = self._shared or self._pid != os.getpid()
            if not (others and self._is_there(deadline or self._model.deadline())):
                self._put_all(deadline)
            self._sent += 1

    def _is_there(self, deadline: float) -> bool:
        """Whether another process has sent this very index; where what it sent has changed since, this one
        gets a name of its own."""
        name = self._name
        both: Both[int] = Both(
            lambda call_id, left: codec.Inspect(call_id, left, name),
            lambda reply: int(reply["version"]),
            lambda engine, deadline: self._version,
        )
        try:
            version = self._model.ask_of_index("inspect", both, deadline)
        except UnknownIndex:
            return False
        if version != self._version:
            self._be_owner()
            return False
        return True

    def _put_all(self, deadline: float | None) -> None:
        for left in reversed(range(TRIES)):
            try:
                return self._put(0, 0, deadline)
            except UnknownIndex:  # the connection broke between two pieces, or the model was swapped
                self._check_model()
                if not left:
                    raise

    def _put(self, first: int, start: int, deadline: float | None) -> None:
        """Send the vectors from number `first` on, which are the server's from `start` on."""
        ids, rows = self._ids[first:], np.ascontiguousarray(self.embeddings[first:], np.float32)
        total = start + len(ids)
        most = max(1, min(PIECE_BYTES, self._model.piece_bytes) // (8 + 4 * self.dimension))
        for at in range(0, max(1, len(ids)), most):
            piece_ids, piece = ids[at : at + most], rows[at : at + most]
            raw = memoryview(piece_ids.astype("<i8").tobytes() + piece.astype("<f4", copy=False).tobytes())
            put = codec.Put(
                0, 0.0, self._name, self.identity, self._version, self.metric, self.kind, self.dimension,
                start + at, total, len(piece_ids),
            )  # fmt: skip
            both: Both[int] = Both(
                lambda call_id, left, put=put: msgspec.structs.replace(put, id=call_id, time_left_s=left),  # type: ignore[misc]
                lambda count: count,
                lambda engine, deadline: 0,
                raw,
            )
            self._model.ask_of_index("put", both, deadline or self._model.deadline())
        self._on_server = total

    def _search_here(
        self, engine: Any, query: str, prompt: str, k: int, deadline: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same over the embeddings themselves, in this process, which has fallen back."""
        if engine.description.identity != self.identity:
            raise self._mismatch(engine.description.identity)
        row = engine.encode([query], prompt, truncate_dim=self._truncate_dim, deadline=deadline).rows
        with self._alone(deadline):
            ids, rows = self._ids, np.ascontiguousarray(self.embeddings, np.float32)
            if self.metric == "cosine":
                if self._unit is None or self._unit[0] != self._version:
                    self._unit = self._version, exact.unit(rows)
                rows, row = self._unit[1], exact.unit(row)
        scores, positions = exact.search(rows, row, min(k, len(rows)), self.metric)
        return ids[positions[0]], scores[0]

    def _check_model(self) -> None:
        found = self._model.describe().identity
        if found != self.identity:
            raise self._mismatch(found)

    def _mismatch(self, found: str) -> ModelMismatch:
        return ModelMismatch(
            f"the index holds vectors of another model ({self.identity[:12]}) than the one that serves "
            f"({found[:12]}); embed its documents again: build_vector_index(docs, urls)",
            expected=self.identity,
            found=found,
        )

    @contextmanager
    def _alone(self, deadline: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise DeadlineExceeded("the index was being changed or sent all the time that the call had")
        try:
            yield
        finally:
            self._lock.release()

    def _be_owner(self) -> None:
        """Before it changes: what other processes share stays as it is, and this one's has another name."""
        if self._shared or self._pid != os.getpid():
            self._take_name(secrets.token_bytes(16))
            self._sent = 0

    def _take_name(self, name: bytes, shared: bool = False) -> None:
        self._name, self._shared, self._pid = name, shared, os.getpid()
        if not shared:  # what others may use goes when it was not used for long
            weakref.finalize(self, _release, self._model.released, name, self._pid)


def _release(released: deque[bytes], name: bytes, pid: int) -> None:
    """The garbage collector may call this anywhere: nothing is sent from here."""
    if pid == os.getpid():
        released.append(name)


def _positive(top_k: Any) -> int:
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
        raise InvalidInput(f"top_k is {top_k!r}; it must be a whole number from 1 on")
    return min(int(top_k), 2**63 - 1)


def _ids(ids: Sequence[int]) -> list[int]:
    try:
        numbers = [int(number) for number in ids]
    except (TypeError, ValueError):
        raise InvalidInput("ids must be whole numbers, as the metadata's `id`") from None
    return [number for number in numbers if 0 <= number < 2**63]


_living: weakref.WeakSet[VectorIndex] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for index in list(_living):
        index._begin()


platforms.after_fork_in_child(_reset_after_fork)
