"""A model's scores as APIs show them: between 0 and 1 where they promise it, finite, and in order. Pure."""

from __future__ import annotations

import numpy as np

from embedshare import activations
from embedshare.calls import ScoreResult
from embedshare.errors import EngineFailed, NotServed
from embedshare.identity import ModelDescription


def normalized(found: ScoreResult) -> np.ndarray:
    """Float32 (documents, labels): each score of a reranker through the sigmoid, a classifier's through the
    softmax; similarities of a multi-vector model as they are.

    These are the values of text-embeddings-inference, whatever activation the model names. Raises
    EngineFailed.
    """
    rows = _finite(found.rows)
    if not gives_logits(found.description):
        return rows
    return activations.sigmoid(rows) if rows.shape[1] == 1 else activations.softmax(rows)


def activated(found: ScoreResult) -> np.ndarray:
    """Float32 (documents, labels): the scores through the model's own activation, as CrossEncoder.predict
    gives them. Raises EngineFailed."""
    rows, name = _finite(found.rows), found.description.activation
    return rows if name is None else activations.named(name)(rows)


def raw(found: ScoreResult) -> np.ndarray:
    """Float32 (documents, labels): the scores before an activation. Raises EngineFailed."""
    return _finite(found.rows)


def best_first(found: ScoreResult, most: int | None = None) -> list[int]:
    """The numbers of the documents, that of the highest score first; equal ones in their order.

    The scores before an activation decide: near 1 a sigmoid makes different ones equal. `most`: at most so
    many.
    """
    return [int(number) for number in np.argsort(-found.rows[:, 0], kind="stable")[:most]]


def check_classifies(model: ModelDescription) -> None:
    """Raise NotServed unless the model has labels."""
    if "scores" not in model.outputs:
        raise NotServed(f"{model.model_name} does not classify; it gives {model.can}")


def is_reranker(model: ModelDescription) -> bool:
    """Whether it is a cross-encoder of one score; one of several labels classifies."""
    return "scores" in model.outputs and len(model.labels) < 2


def gives_logits(model: ModelDescription) -> bool:
    """Whether its scores are a cross-encoder's, and not similarities of vectors."""
    return "scores" in model.outputs


def _finite(rows: np.ndarray) -> np.ndarray:
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(wrong):
        raise EngineFailed(f"the model's score of document {wrong[0]} is not a finite number")
    return rows
