"""Sparse vectors, as stores keep and search them. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from embedshare.errors import InvalidInput, NotFinite


class Weights(NamedTuple):
    """Weights of a vocabulary's tokens."""

    indices: np.ndarray
    """Of the tokens, (n,), ascending; a text may have none."""

    values: np.ndarray
    """Their weights, (n,)."""


def check(weights: Weights, what: str, **fields: int) -> None:
    """Raise InvalidInput for a sparse vector of another form, and NotFinite.

    Engines take a token that comes twice, and count one of its weights.
    """
    indices, values = weights
    if np.ndim(indices) != 1 or np.shape(indices) != np.shape(values):
        raise InvalidInput(f"{what} has {np.size(values)} weights for {np.size(indices)} tokens", **fields)
    if (indices[:1] < 0).any() or (np.diff(indices) <= 0).any():
        raise InvalidInput(f"{what} has tokens that are not ascending from 0", **fields)
    if not np.isfinite(values).all():
        raise NotFinite(f"{what} has a weight that is NaN or infinite", **fields)
