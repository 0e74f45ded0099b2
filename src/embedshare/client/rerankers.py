"""The models by which a client's searches are reranked."""

from __future__ import annotations

import threading
from collections.abc import Callable

from embedshare import platforms, reranking
from embedshare.client.embedder import Embedder
from embedshare.errors import ClientClosed


class Rerankers:
    """A client's other models, each met at its first use; thread-safe and fork-safe."""

    def __init__(self, meet: Callable[[str], Embedder]) -> None:
        """`meet` makes what calls the model of a name."""
        self._meet = meet
        self._met: dict[str, Embedder] = {}
        self._is_closed = False
        self._begin()
        platforms.after_fork_in_child(self._begin)

    def checked(self, name: str, limit: float) -> Embedder:
        """The model of this name, by the moment `limit` of `time.monotonic()`.

        Raises UnknownModel, NotServed if it cannot rerank, ClientClosed, and the errors of reaching it.
        """
        with self._lock:
            self._check_open()
            known = self._met.get(name)
        found = known or self._meet(name)
        try:
            reranking.check(found.describe(limit))
            with self._lock:
                self._check_open()
                kept = self._met.setdefault(name, found)
        except BaseException:
            if known is None:  # names are callers': one that is no reranker's is not kept
                found.failover.close()
            raise
        if kept is not found:  # another thread was quicker
            found.failover.close()
        return kept

    def close(self) -> None:
        """End them all, for good."""
        with self._lock:
            self._is_closed = True
            met, self._met = self._met, {}
        for embedder in met.values():
            embedder.failover.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClientClosed("the client is closed; get_embedding_model() gives a new one")

    def _begin(self) -> None:
        self._lock = threading.Lock()
