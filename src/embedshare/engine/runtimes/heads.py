"""Heads: what a graph of packed rows takes for a batch, and what its outputs give each text. NumPy alone.

A head is stored with its graph, so that a start from the cache needs neither torch nor the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol

import msgspec
import numpy as np

from embedshare.engine.runtimes.packing import Packed
from embedshare.engine.sequences import OutputIds, PairIds, TaskIds
from embedshare.engine.text_outputs import TextOutputs, ragged

#: Tokens over which a sparse graph pools: every width of a row is a multiple. Logits of a whole batch would
#: be written and read again, and logits padded to the longest text computed for nothing.
BLOCK = 4


#: The arrays that a graph gives, by their number.
Outputs = Sequence[np.ndarray] | Mapping[int, np.ndarray]


class Head(Protocol):
    """The two ends of a graph."""

    outputs: ClassVar[int]
    """The number of the graph's outputs, from the first one on, that `rows` reads."""

    def inputs(self, sequences: list[Any], packed: Packed) -> list[np.ndarray]:
        """The graph's inputs for this batch, int64 of two dimensions each."""

    def rows(self, sequences: list[Any], packed: Packed, outputs: Outputs) -> np.ndarray:
        """What each sequence gets from the graph's outputs: new arrays, float32 (n, dimension) or
        TextOutputs (n,)."""


class DenseHead(msgspec.Struct, frozen=True, tag="dense"):
    """One vector of each text, pooled in the graph."""

    outputs: ClassVar[int] = 1

    def inputs(self, sequences: list[Any], packed: Packed) -> list[np.ndarray]:
        """See Head."""
        return list(packed)

    def rows(self, sequences: list[Any], packed: Packed, outputs: Outputs) -> np.ndarray:
        """See Head."""
        return outputs[0].copy()


class ScoresHead(msgspec.Struct, frozen=True, tag="scores"):
    """A cross-encoder: scores of each text or pair, computed in the graph."""

    outputs: ClassVar[int] = 1

    reads_types: bool
    """Whether the graph takes the types of tokens: 0 for the first text of a pair, 1 for the second."""

    def inputs(self, sequences: list[Any], packed: Packed) -> list[np.ndarray]:
        """See Head."""
        return [*packed, self._types(sequences, packed)] if self.reads_types else list(packed)

    def rows(self, sequences: list[Any], packed: Packed, outputs: Outputs) -> np.ndarray:
        """See Head."""
        return outputs[0].copy()

    def _types(self, sequences: list[Any], packed: Packed) -> np.ndarray:
        types = np.zeros_like(packed.input_ids)
        for ids, places in zip(sequences, packed.places, strict=True):
            if isinstance(ids, PairIds):
                types.reshape(-1)[places[ids.second : len(ids)]] = 1
        return types


class SparseHead(msgspec.Struct, frozen=True, tag="sparse"):
    """SPLADE: logits of the vocabulary, pooled over blocks of tokens in the graph and over a text here.

    The largest logit's weight is the largest weight, since weights grow with logits. So the graph's blocks
    are logits, and a weight is computed only where it is not 0. A sum is one of weights: its blocks are
    weights.
    """

    outputs: ClassVar[int] = 1

    pooling: Literal["max", "sum"]
    logs: int
    """How often a weight is log(1 + weight) of a positive logit."""

    def inputs(self, sequences: list[Any], packed: Packed) -> list[np.ndarray]:
        """See Head."""
        places = packed.places
        if self.pooling == "max":  # a repeated token changes no maximum
            places = np.where(places >= 0, places, places[:, :1])
        blocks = places.reshape(-1, BLOCK)
        if len(sequences) > 1:  # a single text's shape depends on its row's width alone
            blocks = blocks[(packed.places[:, ::BLOCK] >= 0).ravel()]
        return [packed.input_ids, packed.position_ids, packed.segments, blocks]

    def rows(self, sequences: list[Any], packed: Packed, outputs: Outputs) -> np.ndarray:
        """See Head."""
        if len(sequences) == 1:
            return ragged([TextOutputs(sparse=self._weights(outputs[0]))])
        ends = np.cumsum([0, *(-(-len(ids) // BLOCK) for ids in sequences)])
        return ragged([TextOutputs(sparse=self._weights(outputs[0][a:b])) for a, b in pairwise(ends)])

    def _weights(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pooled = blocks.max(axis=0) if self.pooling == "max" else blocks.sum(axis=0)
        indices = np.flatnonzero(pooled > 0).astype(np.int32)
        values = pooled[indices]
        if self.pooling == "max":
            for _ in range(self.logs):
                values = np.log1p(values)
        return indices, values


class TokensHead(msgspec.Struct, frozen=True, tag="tokens"):
    """ColBERT: a vector of each token but the skipped ones."""

    outputs: ClassVar[int] = 1

    skipped: dict[str, list[int]] = {}
    """Ids of tokens without a vector, for "query" and "document"."""

    kept: list[int] | None = None
    """Ids of the only tokens with a vector, except in queries; None: all."""

    def inputs(self, sequences: list[Any], packed: Packed) -> list[np.ndarray]:
        """See Head. A token that no other sees has the number -2 - n of its text n."""
        segments = packed.segments
        for text, ids in enumerate(sequences):
            if isinstance(ids, TaskIds) and ids.unseen:
                segments.reshape(-1)[packed.places[text, len(ids) - ids.unseen : len(ids)]] = -2 - text
        return [packed.input_ids, packed.position_ids, segments]

    def rows(self, sequences: list[Any], packed: Packed, outputs: Outputs) -> np.ndarray:
        """See Head."""
        vectors = outputs[0].reshape(-1, outputs[0].shape[-1])
        return ragged([
            TextOutputs(multi_vector=vectors[places[: len(ids)][self._has_vector(ids)]])
            for ids, places in zip(sequences, packed.places, strict=True)
        ])  # fmt: skip

    def _has_vector(self, ids: list[int]) -> np.ndarray:
        task = ids.task if isinstance(ids, TaskIds) else "document"
        has = np.ones(len(ids), bool)
        if self.skipped.get(task):
            has &= ~np.isin(ids, self.skipped[task])
        if self.kept and task != "query":
            has &= np.isin(ids, self.kept)
        return has


class SeveralHead(msgspec.Struct, frozen=True, tag="several"):
    """BGE-M3: a vector of the text, a weight and a vector of each token, from one pass."""

    outputs: ClassVar[int] = 3

    unweighted: list[int]
    """Ids of tokens without a weight, such as special ones."""

    def inputs(self, sequences: list[Any], packed: Packed) -> list[np.ndarray]:
        """See Head."""
        return list(packed)

    def rows(self, sequences: list[Any], packed: Packed, outputs: Outputs) -> np.ndarray:
        """See Head. A sequence that asks for nothing gets the text's vector."""
        rows = []
        for text, ids in enumerate(sequences):
            wanted = ids.outputs if isinstance(ids, OutputIds) else ("dense",)
            places = packed.places[text, : len(ids)]
            rows.append(
                TextOutputs(
                    outputs[0][text].copy() if "dense" in wanted else None,
                    self._weights(ids, outputs[1].ravel()[places]) if "sparse" in wanted else None,
                    _rows_of(outputs[2])[places[1:]] if "multi-vector" in wanted else None,
                )
            )
        return ragged(rows)

    def _weights(self, ids: list[int], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The largest weight of each token."""
        counts = (weights > 0) & ~np.isin(ids, self.unweighted)
        order = np.lexsort((weights[counts], np.array(ids)[counts]))
        tokens, values = np.array(ids, np.int32)[counts][order], weights[counts][order]
        is_last = np.append(tokens[1:] != tokens[:-1], True)[: len(tokens)]
        return tokens[is_last], values[is_last]


def _rows_of(vectors: np.ndarray) -> np.ndarray:
    return vectors.reshape(-1, vectors.shape[-1])
