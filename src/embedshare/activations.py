"""The functions that a cross-encoder's scores go through, by the names of torch's modules."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from embedshare.errors import InvalidInput


def identity(rows: np.ndarray) -> np.ndarray:
    """Logits as they are."""
    return rows


def sigmoid(rows: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), in a form that does not overflow."""
    shrunk = np.exp(-np.abs(rows))
    shares: np.ndarray = np.where(rows >= 0, 1.0, shrunk).astype(rows.dtype) / (1 + shrunk)
    return shares


def softmax(rows: np.ndarray) -> np.ndarray:
    """Shares of each row's labels, which add up to 1."""
    grown = np.exp(rows - rows.max(axis=-1, keepdims=True))
    shares: np.ndarray = grown / grown.sum(axis=-1, keepdims=True)
    return shares


def tanh(rows: np.ndarray) -> np.ndarray:
    """The hyperbolic tangent."""
    bent: np.ndarray = np.tanh(rows)
    return bent


def relu(rows: np.ndarray) -> np.ndarray:
    """Negative values as 0."""
    kept: np.ndarray = np.maximum(rows, 0)
    return kept


#: By the last part of the class's name in torch.nn, as models' configurations have it.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Identity": identity,
    "Sigmoid": sigmoid,
    "Softmax": softmax,
    "Tanh": tanh,
    "ReLU": relu,
}


def named(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of this name. Raises InvalidInput for another one."""
    if name not in ACTIVATIONS:
        raise InvalidInput(f"activation_fn is {name!r}; allowed: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
