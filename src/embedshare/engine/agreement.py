"""How near two forms of one model are, by what they make of the same texts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from embedshare.engine.sequences import OutputIds, TaskIds
from embedshare.engine.text_outputs import TextOutputs
from embedshare.engine.trials import smallest_cosine

_Pair = tuple[np.ndarray, np.ndarray]


def difference(found: TextOutputs, expected: TextOutputs) -> float:
    """The largest difference of a value, for vectors of length 1; infinite if an output is missing."""
    if _lacks(found, expected):
        return np.inf
    return max((_apart(*pair) for pair in _pairs(found, expected)), default=np.inf)


def cosine(found: TextOutputs, expected: TextOutputs) -> float:
    """The smallest cosine of an output to the expected one; -1 if one is missing.

    The vectors of a text's tokens count as one long vector, as a score by them adds up their products.
    """
    if _lacks(found, expected):
        return -1.0
    return min((_cosine(*pair) for pair in _pairs(found, expected)), default=-1.0)


class KeptOutputs(msgspec.Struct, frozen=True):
    """The proof of a model with outputs of several sizes, as it is stored with its graph.

    Arrays are the bytes of float32 or int32.
    """

    sequences: list[list[int]]
    tasks: list[tuple[str, int] | None]
    """Of each sequence its task, and the number of tokens at its end that no other sees."""

    outputs: tuple[str, ...]
    dense: list[bytes | None]
    sparse: list[tuple[bytes, bytes] | None]
    multi_vector: list[tuple[bytes, int] | None]
    """Vectors and their dimension."""

    @classmethod
    def of(
        cls, sequences: Sequence[list[int]], expected: Sequence[TextOutputs], outputs: tuple[str, ...]
    ) -> KeptOutputs:
        """The proof of these sequences."""
        return cls(
            [list(ids) for ids in sequences],
            [(ids.task, ids.unseen) if isinstance(ids, TaskIds) else None for ids in sequences],
            outputs,
            [None if one.dense is None else one.dense.tobytes() for one in expected],
            [None if one.sparse is None else (one.sparse[0].tobytes(), one.sparse[1].tobytes())
             for one in expected],
            [None if one.multi_vector is None else (one.multi_vector.tobytes(), one.multi_vector.shape[1])
             for one in expected],
        )  # fmt: skip

    def inputs(self) -> list[list[int]]:
        """The sequences in a runtime's form."""
        if len(self.outputs) > 1:
            return [OutputIds(ids, self.outputs) for ids in self.sequences]
        pairs = zip(self.sequences, self.tasks, strict=True)
        return [ids if task is None else TaskIds(ids, *task) for ids, task in pairs]

    def agreement(self, rows: np.ndarray, which: list[int]) -> float:
        """The smallest cosine of `rows`, made of the sequences at `which`."""
        return min(cosine(row, self._expected(at)) for row, at in zip(rows, which, strict=True))

    def _expected(self, at: int) -> TextOutputs:
        dense, sparse, tokens = self.dense[at], self.sparse[at], self.multi_vector[at]
        found = TextOutputs()
        if dense is not None:
            found = found._replace(dense=np.frombuffer(dense, np.float32))
        if sparse is not None:
            weights = np.frombuffer(sparse[0], np.int32), np.frombuffer(sparse[1], np.float32)
            found = found._replace(sparse=weights)
        if tokens is not None:
            found = found._replace(multi_vector=np.frombuffer(tokens[0], np.float32).reshape(-1, tokens[1]))
        return found


def _lacks(found: TextOutputs, expected: TextOutputs) -> bool:
    return any(one is None and other is not None for one, other in zip(found, expected, strict=True))


def _pairs(found: TextOutputs, expected: TextOutputs) -> Iterator[_Pair]:
    """Both forms of each output, as rows of the same size."""
    if expected.dense is not None and found.dense is not None:
        yield found.dense[None], expected.dense[None]
    if expected.sparse is not None and found.sparse is not None:
        words = np.union1d(found.sparse[0], expected.sparse[0])
        yield _over(words, *found.sparse), _over(words, *expected.sparse)
    if expected.multi_vector is not None and found.multi_vector is not None:
        yield found.multi_vector, expected.multi_vector


def _over(words: np.ndarray, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The weights of these words: float32 (1, words)."""
    row = np.zeros((1, len(words)), np.float32)
    row[0, np.searchsorted(words, indices)] = values
    return row


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return np.inf
    if not expected.size:
        return 0.0
    sizes = np.maximum(np.linalg.norm(expected, axis=1), 1e-3)
    apart = np.abs(found - expected).max(axis=1) / sizes
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def _cosine(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return -1.0
    return smallest_cosine(found.reshape(1, -1), expected.reshape(1, -1))
