"""The interface of runtimes to the scheduler."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Runtime(Protocol):
    """A loaded model. `run` may be called by `max_batches` threads at once."""

    name: str
    device: str
    dtype: str
    max_batches_per_lane: int
    """The most useful parallel batches of one lane."""
    max_batches: int
    """The most parallel batches of both lanes."""
    interactive_budget: int
    bulk_budget: int
    """The most tokens in one batch, for each lane."""
    packs: bool
    """Whether texts share rows; otherwise each costs as much as the longest of its batch."""
    padding_tokens: int
    """Computed positions without a token, in all batches so far."""

    def run(self, sequences: list[Any]) -> np.ndarray:
        """Sequences to float32 vectors of shape (n, dimension), contiguous and new.

        Raises OutOfMemory if the device has no room for this many.
        """

    def settle(self) -> None:
        """Do the work that the load has put off, such as further compilation, to its end."""

    def close(self) -> None:
        """Give up that work, or return when it has ended; the runtime runs no more."""
