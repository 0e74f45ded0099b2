"""A cross-encoder's proof as it is stored with its graph: pairs of texts as token ids, and their scores."""

from __future__ import annotations

import msgspec
import numpy as np

from embedshare.engine.sequences import PairIds

#: In reduced precision a score may differ by this part of the largest one, if that is above 1.
MOST_REDUCED = 0.01
#: The difference that counts as much as 1 of a cosine: at MOST_REDUCED agreement is LEAST_COSINE.
_SCALE = 100.0


class KeptScores(msgspec.Struct, frozen=True):
    """Sequences, and sentence-transformers' logits of them."""

    sequences: list[list[int]]
    seconds: list[int | None]
    """Of each sequence, the place at which its second text begins; None for a single text."""

    expected: list[list[float]]
    """(sequences, labels)."""

    @classmethod
    def of(cls, sequences: list[list[int]], expected: np.ndarray) -> KeptScores:
        """The proof of these sequences; `expected` (sequences, labels)."""
        seconds = [ids.second if isinstance(ids, PairIds) else None for ids in sequences]
        return cls([list(ids) for ids in sequences], seconds, expected.tolist())

    def inputs(self) -> list[list[int]]:
        """The sequences in a runtime's form."""
        pairs = zip(self.sequences, self.seconds, strict=True)
        return [ids if second is None else PairIds(ids, second) for ids, second in pairs]

    def agreement(self, rows: np.ndarray, which: list[int]) -> float:
        """How near `rows`, made of the sequences at `which`, are to the logits: see `agreement`."""
        expected = np.array(self.expected, np.float32)
        return agreement(rows, expected[which], float(np.abs(expected).max()))


def agreement(rows: np.ndarray, expected: np.ndarray, largest: float) -> float:
    """1 for equal scores; LEAST_COSINE where one differs by MOST_REDUCED of `largest`, the largest logit of
    all, or of 1."""
    apart = float(np.abs(rows - expected).max()) / max(1.0, largest)
    return 1.0 - apart / _SCALE if np.isfinite(apart) else -1.0
