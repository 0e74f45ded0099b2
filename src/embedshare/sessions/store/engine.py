"""What a store needs of a vector engine."""

from __future__ import annotations

import abc
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from embedshare.sessions.store.filters import Where
from embedshare.sessions.store.weights import Weights

#: The name of a point's sparse vector; its dense one has none.
SPARSE = "sparse"


class Record(NamedTuple):
    """A point as an engine keeps it."""

    id: uuid.UUID
    vector: list[float]
    payload: dict[str, Any]
    sparse: Weights | None = None


class Hit(NamedTuple):
    """A point that an engine found."""

    score: float
    payload: dict[str, Any]


class Engine(abc.ABC):
    """One collection of cosine vectors, and of sparse ones by their dot product. Thread-safe.

    Each record is written as a whole or not at all, also by a process that is killed. Every method raises
    StoreUnavailable and StoreFailed.
    """

    @abc.abstractmethod
    def index(self, key: str, kind: str) -> None:
        """Make an index of a payload's key, if there is none. `kind`: as in `metadata.KINDS`."""

    @abc.abstractmethod
    def upsert(self, records: Sequence[Record]) -> None:
        """Write records; those of the same ids are replaced."""

    @abc.abstractmethod
    def delete(self, where: Where) -> None:
        """Delete all points that match."""

    @abc.abstractmethod
    def nearest(self, vector: list[float] | Weights, limit: int, where: Where) -> list[Hit]:
        """The matching points of the highest scores, exactly, best first; for weights, of those that share a
        token with them."""

    @abc.abstractmethod
    def count(self, where: Where) -> int:
        """The number of matching points."""

    @abc.abstractmethod
    def values(self, key: str, where: Where) -> dict[str, int]:
        """Each value of an indexed keyword among the matching points, and the number of its points."""

    @abc.abstractmethod
    def payloads(self, where: Where) -> Iterator[dict[str, Any]]:
        """The payloads of all matching points."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release everything; a second call does nothing."""
