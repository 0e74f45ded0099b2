"""What every runtime offers to the scheduler."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Runtime(Protocol):
    """A loaded model.

    `run` may be called by `max_batches` threads at once.
    """

    name: str
    device: str
    dtype: str
    max_batches_per_lane: int
    """Batches of one lane that are worth running side by side."""
    max_batches: int
    """Batches of both lanes that may run side by side."""
    interactive_budget: int
    bulk_budget: int
    """Tokens in one batch, at most, of each kind of work."""
    packs: bool
    """Whether texts share rows; those that do not cost as much as the longest of their batch."""
    padding_tokens: int
    """Places in all batches so far that were computed and held no token."""

    def run(self, sequences: list[Any]) -> np.ndarray:
        """Sequences to float32 vectors of shape (n, dimension), contiguous, the caller's own.

        Raises OutOfMemory where the device has no room for this many.
        """

    def settle(self) -> None:
        """Return when nothing that was begun with the load goes on any more, such as further compilation."""
