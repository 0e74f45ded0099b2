"""The models by which a client's searches are reranked."""

from __future__ import annotations

import threading
from collections.abc import Callable

from embedshare import platforms, reranking
from embedshare.client.embedder import Embedder


class Rerankers:
    """A client's other models, each met at its first use; thread-safe and fork-safe."""

    def __init__(self, meet: Callable[[str], Embedder]) -> None:
        """`meet` makes what calls the model of a name."""
        self._meet = meet
        self._met: dict[str, Embedder] = {}
        self._begin()
        platforms.after_fork_in_child(self._begin)

    def checked(self, name: str, limit: float) -> Embedder:
        """The model of this name, by the moment `limit` of `time.monotonic()`.

        Raises UnknownModel, NotServed if it cannot rerank, and the errors of reaching it.
        """
        with self._lock:
            found = self._met.get(name)
            if found is None:
                found = self._met[name] = self._meet(name)
        reranking.check(found.describe(limit))
        return found

    def close(self) -> None:
        """End them all."""
        with self._lock:
            met, self._met = self._met, {}
        for embedder in met.values():
            embedder.failover.close()

    def _begin(self) -> None:
        self._lock = threading.Lock()
