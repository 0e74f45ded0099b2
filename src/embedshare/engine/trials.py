"""The results of a graph's first runs in one precision on one kind of CPU, stored with the graph.

Half precision changes some models too much, and some graphs crash the process that runs them.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np

from embedshare.engine.sequences import PromptedIds, prompt_tokens

#: The least cosine of a vector in reduced precision to sentence-transformers' own.
LEAST_COSINE = 0.9999


class KeptProof(msgspec.Struct, frozen=True):
    """A model's proof (runtimes/proof.py): its texts as token ids, and sentence-transformers' vectors."""

    sequences: list[list[int]]
    expected: list[list[float]]
    """(texts, the model's default dimensions)."""

    prompt_tokens: list[int]
    """Of each text, the number of tokens at its beginning that pooling leaves out."""

    @classmethod
    def of(cls, sequences: list[list[int]], expected: np.ndarray) -> KeptProof:
        """The proof of these sequences; `expected` (texts, dimensions)."""
        return cls(sequences, expected.tolist(), list(map(prompt_tokens, sequences)))

    def inputs(self) -> list[list[int]]:
        """The sequences in a runtime's form."""
        pairs = zip(self.sequences, self.prompt_tokens, strict=True)
        return [PromptedIds(ids, tokens) if tokens else ids for ids, tokens in pairs]

    def agreement(self, rows: np.ndarray, which: list[int]) -> float:
        """The smallest cosine of `rows`, made of the sequences at `which`."""
        return smallest_cosine(rows, np.array([self.expected[at] for at in which], np.float32))


class Trial(msgspec.Struct, frozen=True):
    """The result of the first runs."""

    cosine: float | None
    """The smallest to the proof's vectors; None if they crashed the process."""

    @property
    def passed(self) -> bool:
        """Whether the precision is good enough to serve in."""
        return self.cosine is not None and self.cosine >= LEAST_COSINE


class Trials(Protocol):
    """The known trials of one graph on this kind of CPU, by precision."""

    def find(self, dtype: str) -> Trial | None: ...
    def keep(self, dtype: str, trial: Trial) -> None: ...
    def chosen(self) -> str | None:
        """The precision that "auto" meant before: it is measured, and measurements differ."""

    def choose(self, dtype: str) -> None:
        """Let "auto" mean this precision from now on."""


def smallest_cosine(rows: np.ndarray, expected: np.ndarray) -> float:
    """The smallest cosine of `rows` (texts, at least the columns of `expected`) to their expected vectors.

    A text without a vector (no tokens: zeros, or NaN) does not count.
    """
    rows = rows[:, : expected.shape[1]].astype(np.float64)
    sizes = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    counts = np.linalg.norm(expected, axis=1) > 0  # False for NaN
    cosines = (rows * expected).sum(axis=1)[counts] / np.maximum(sizes[counts], 1e-30)
    return float(np.where(np.isnan(cosines), -1.0, cosines).min(initial=1.0))
