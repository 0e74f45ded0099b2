"""A vector index in its caller's hands; the index itself is in the model server.

The handle keeps the embeddings. So a server without the index gets it again without embedding anything, and a
local model can answer while the server is down.
"""

from __future__ import annotations

import operator
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from embedshare import platforms
from embedshare.backoff import retry
from embedshare.calls import CallContext
from embedshare.errors import (
    DeadlineExceeded,
    IndexIncomplete,
    InvalidInput,
    Overloaded,
    ServerUnavailable,
    TooLarge,
    UnknownIndex,
)
from embedshare.providers.base import IndexCopy, Indexes
from embedshare.vectors import kinds
from embedshare.vectors.client import file_format
from embedshare.vectors.client.replica import PAUSES, Model, Replica
from embedshare.vectors.client.snapshot import IndexSnapshot, of_another_model
from embedshare.vectors.documents import as_documents, metadata_of

T = TypeVar("T")
#: Errors of a change's message to the server: the next search detects the loss.
_MENDED_LATER: Final = (UnknownIndex, ServerUnavailable, DeadlineExceeded, Overloaded)


class _At(NamedTuple):
    """A search's index, and the number of the server's updates by then."""

    copy: IndexCopy
    told: int


class VectorIndex:
    """A vector index of documents, stored in the model server.

    It has `len(index)` documents; `metadata` and `embeddings` (float32, (n, dimension)) are theirs in the
    same order. `add` and `remove` change all of them. Thread-safe; a forked child's copy separates at its
    first change.
    """

    def __init__(
        self,
        model: Model,
        embeddings: np.ndarray,
        identity: str,
        metadata: list[dict[str, Any]],
        *,
        metric: str,
        kind: str,
        truncate_dim: int | None = None,
        shared_name: bytes | None = None,
    ) -> None:
        self.metric, self.kind = kinds.check(metric, kind)
        self.identity = identity
        """The model whose vectors these are."""
        self.metadata = metadata
        self._model = model
        self._truncate_dim = truncate_dim
        ids = np.arange(len(metadata), dtype=np.int64)
        self._contents = IndexSnapshot(0, ids, embeddings, list(metadata))
        self._next_id = len(metadata)
        self._copy = Replica(model, self.identity, self.metric, self.kind, self.dimension, shared_name)
        self._begin()
        platforms.after_fork_in_child(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: a handle of the same index in the server, until either changes."""
        return _copied, self._parts()

    def __copy__(self) -> VectorIndex:
        model, embedded, metadata, *others = self._parts()
        return _copied(model, embedded, list(metadata), *others)

    def _parts(self) -> tuple[Any, ...]:
        with self._alone(self._model.deadline()):
            contents = self._contents
            return (
                self._model, (contents.embeddings, self.identity), self.metadata, contents.documents,
                self.metric, self.kind, self._truncate_dim, self._copy.share(), contents.version,
                contents.ids, self._next_id,
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self._contents.ids)

    def __repr__(self) -> str:
        return f"<VectorIndex of {len(self)} documents, {self.metric}, {self.kind}>"

    @property
    def embeddings(self) -> np.ndarray:
        """The documents' vectors, float32 (n, dimension), in order."""
        return self._contents.embeddings

    @property
    def dimension(self) -> int:
        """Values of a vector."""
        return int(self.embeddings.shape[1])

    @property
    def ids(self) -> list[int]:
        """The documents' numbers, in order; a removed one's is never reused."""
        ids: list[int] = self._contents.ids.tolist()
        return ids

    @property
    def recall(self) -> float:
        """Recall at 10 against exact search, measured on its own vectors when the index was built."""
        return float(self.describe()["recall"])

    def describe(self) -> dict[str, Any]:
        """The index where searches are answered: `count`; `kind` of its present search; `built`, false while
        it is searched exactly until its structure is built; `recall`; `bytes`."""
        deadline = self._model.deadline()
        found = self._asked(
            "inspect", lambda index, indexes, context: indexes.describe(index, context), deadline
        )[1]
        return {name: value for name, value in found.items() if name != "version"}

    def search(self, query: str, top_k: int = 3) -> tuple[list[int], list[float]]:
        """The ids and scores of the `top_k` documents nearest to a text, best first; of all, if there are
        fewer.

        Scores: squared L2 distance (lower is better), cosine or inner product (higher is better). One round
        trip. Raises InvalidInput, ModelMismatch, and what `encode` raises.
        """
        _, ids, scores = self._search(query, top_k)
        return ids, scores

    def find(self, query: str, top_k: int = 3) -> list[dict[str, Any]]:
        """`search` with the documents' metadata of that moment: see EmbeddingClient.search_index."""
        contents, ids, scores = self._search(query, top_k)
        return contents.results(ids, scores)

    def _search(self, query: str, top_k: int) -> tuple[IndexSnapshot, list[int], list[float]]:
        if not isinstance(query, str):
            raise InvalidInput(f"the query must be a str, not {type(query).__name__}")
        k = _positive(top_k)
        deadline = self._model.deadline()
        request = self._model.query(query, self._truncate_dim)
        contents, (ids, scores) = self._asked(
            "search", lambda index, indexes, context: indexes.search(index, request, k, context), deadline
        )
        return contents, ids.tolist(), scores.tolist()

    def add(
        self, docs: Iterable[str], urls: Iterable[str] | None = None, *, show_progress_bar: bool | None = None
    ) -> list[int]:
        """Embed documents and add them; returns their ids.

        Raises InvalidInput, ModelMismatch, TooLarge, and what `encode` raises; then nothing has changed.
        """
        texts = as_documents(docs)
        metadata = metadata_of(texts, urls)
        self._check_model()
        if not texts:
            return []
        embedded = self._model.embed_documents(texts, show_progress_bar)
        if embedded.identity != self.identity:
            raise of_another_model(self.identity, embedded.identity)
        deadline = self._model.deadline()
        with self._alone(deadline):
            self._copy.become_owner()
            first = len(self)
            new = np.arange(self._next_id, self._next_id + len(texts), dtype=np.int64)
            for number, entry in zip(new.tolist(), metadata, strict=True):
                entry["id"] = number
            before, self._contents = self._contents, self._contents.with_more(new, embedded.rows, metadata)
            try:
                self._copy.add(self._contents, first, deadline)
            except _MENDED_LATER:
                pass  # the server has an earlier version now: the next search sends all
            except TooLarge:
                self._contents = before
                raise
            self.metadata += metadata
            self._next_id += len(texts)
        return new.tolist()

    def remove(self, ids: Sequence[int]) -> int:
        """Remove documents by their ids; returns how many there were.

        Raises InvalidInput; DeadlineExceeded if the index was being changed for all of the call's time.
        """
        numbers = np.array(_ids(ids), np.int64)
        deadline = self._model.deadline()
        with self._alone(deadline):
            before = self._contents.version
            contents, removed = self._contents.without(numbers)
            if removed:
                self._copy.become_owner()
                self._contents = contents
                self.metadata[:] = contents.documents
                try:
                    self._copy.remove(contents, before, removed, deadline)
                except _MENDED_LATER:
                    pass  # as in `add`
        return len(removed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write embeddings, metadata and the model's identity into one file, which `load` reads.

        Processes that load the same file share one index in the server, with this one until it changes its
        own. Raises InvalidInput for metadata that JSON cannot hold, OSError; then the file is unchanged.
        """
        with self._alone(self._model.deadline()):
            contents = self._contents
            about = file_format.About(
                file_format.FORM, self._copy.share().hex(), self.identity, self._model.describe().model_name,
                self.metric, self.kind, self._truncate_dim, self._next_id, contents.documents,
                contents.version,
            )  # fmt: skip
            file_format.write(path, about, contents.ids, contents.embeddings)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model) -> VectorIndex:
        """The index that `save` wrote, for this client (`EmbeddingClient`).

        Raises IndexCorrupted, ModelMismatch if it is of another vector space, OSError.
        """
        about, ids, embeddings = file_format.read(path)
        try:
            index = cls(
                model, embeddings, about.identity, about.metadata, metric=about.metric, kind=about.kind,
                truncate_dim=about.truncate_dim, shared_name=bytes.fromhex(about.name),
            )  # fmt: skip
        except ValueError as error:
            raise file_format.corrupted(path, error) from None
        index._check_model()
        index._contents = IndexSnapshot(about.version, ids, embeddings, list(about.metadata))
        index._next_id = about.next_id
        return index

    def send(self) -> None:
        """Send the index to the server, if the server answers calls."""

        def send() -> None:
            self._check_model()
            self._send_unless_sent(self._at(), None)

        _when_sent(send, self._model.deadline())

    def _at(self) -> _At:
        return _At(self._copy.of(self._contents), self._copy.told)

    def _asked(
        self, method: str, ask: Callable[[IndexCopy, Indexes, CallContext], T], deadline: float
    ) -> tuple[IndexSnapshot, T]:
        """The answer of a server with the index, which is sent if it lacks it; and the index's contents for
        it."""

        def asked() -> tuple[IndexSnapshot, T]:
            while True:
                self._check_model()
                at = self._at()
                call = partial(ask, at.copy)
                try:
                    return at.copy.contents, self._model.ask_of_index(method, call, deadline)
                except IndexIncomplete:
                    raise
                except UnknownIndex:
                    self._send_unless_sent(at, deadline)

        return _when_sent(asked, deadline)

    def _send_unless_sent(self, at: _At, deadline: float | None) -> None:
        """Send the index once, from the first of several threads that found it missing."""
        with self._alone(self._model.deadline() if deadline is None else deadline):
            name, version, told = self._copy.name, self._contents.version, self._copy.told
            if (name, version, told) == (at.copy.name, at.copy.contents.version, at.told):
                self._copy.send(self._contents, deadline)

    def _check_model(self) -> None:
        found = self._model.describe().identity
        if found != self.identity:
            raise of_another_model(self.identity, found)

    @contextmanager
    def _alone(self, deadline: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise DeadlineExceeded("the index was being changed or sent for all of the call's time")
        try:
            yield
        finally:
            self._lock.release()


def _copied(
    model: Model,
    embedded: tuple[np.ndarray, str],
    metadata: list[dict[str, Any]],
    documents: list[dict[str, Any]],
    metric: str,
    kind: str,
    truncate_dim: int | None,
    name: bytes,
    version: int,
    ids: np.ndarray,
    next_id: int,
) -> VectorIndex:
    """A handle; pickles name this function."""
    index = VectorIndex(
        model, *embedded, metadata, metric=metric, kind=kind, truncate_dim=truncate_dim,
        shared_name=name,
    )  # fmt: skip
    index._contents = IndexSnapshot(version, ids, embedded[0], documents)
    index._next_id = next_id
    return index


#: Pickles of every version name the function there.
_copied.__module__ = "embedshare.vectors.handle"


def _positive(top_k: Any) -> int:
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
        raise InvalidInput(f"top_k is {top_k!r}; it must be a whole number from 1 on")
    return min(int(top_k), 2**63 - 1)


def _ids(ids: Sequence[int]) -> list[int]:
    try:
        numbers = [operator.index(number) for number in ids]
    except TypeError:
        raise InvalidInput("ids must be whole numbers, as the metadata's `id`") from None
    return [number for number in numbers if 0 <= number < 2**63]


def _when_sent(work: Callable[[], T], deadline: float) -> T:
    """The result of `work()`, which raises IndexIncomplete while another caller sends the index.

    Raises DeadlineExceeded.
    """
    try:
        return retry(work, lambda error: isinstance(error, IndexIncomplete), PAUSES, deadline)
    except IndexIncomplete:
        raise DeadlineExceeded(
            "the index was being sent to the model server for all of the call's time"
        ) from None
