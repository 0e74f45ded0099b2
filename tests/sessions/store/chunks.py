"""Chunks for tests of stores. Programs that tests start and kill import this too, so it imports little."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedshare.sessions.store.base import Point, VectorStore, point_id
from embedshare.sessions.store.weights import Weights


def vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def rows(count: int, dimension: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


def weights(*pairs: tuple[int, float]) -> Weights:
    """A sparse vector of tokens and their weights."""
    indices, values = [token for token, _ in pairs], [weight for _, weight in pairs]
    return Weights(np.array(indices, np.int32), np.array(values, np.float32))


def chunk_of(
    number: int, values: np.ndarray, session: str = "s", document: str = "d", version: str = "v1", **more: Any
) -> Point:
    """A chunk whose text names its version and number."""
    fields = {"text": f"{version} {number}", "start": 10 * number, "end": 10 * number + 9, "page": None}
    fields |= {"heading": None, "metadata": {}} | more
    return Point(
        point_id(session, document, number), session, document, number, values, version=version, **fields
    )


def publish(
    store: VectorStore, vectors: np.ndarray, session: str = "s", document: str = "d", version: str = "v1"
) -> None:
    """Put and publish a document of these vectors."""
    store.put([chunk_of(number, row, session, document, version) for number, row in enumerate(vectors)])
    store.publish(session, document, version, len(vectors))
