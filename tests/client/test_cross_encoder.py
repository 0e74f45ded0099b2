"""Scores of a client whose model is replaced during a call are those of one model, shown as its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedshare.activations import sigmoid
from embedshare.calls import ScoreRequest, ScoreResult, Timings
from embedshare.client.cross_encoder import CrossEncoder
from embedshare.errors import InvalidInput
from embedshare.identity import ModelDescription
from tests.client.scored import description

RERANKER = description("reranker")
LOGITS = description("logits", activation="Identity")
CLASSIFIER = description("classifier", labels=("a", "b", "c"), activation="Identity")
PAIRS: list[Any] = [("a", "b"), "alone", ("c", "d")]


class Embedder:
    """Each call is answered by the next of `models`; the last one stays."""

    def __init__(self, *models: ModelDescription) -> None:
        self._models = list(models)
        self.calls = 0

    def describe(self, limit: float = 0.0) -> ModelDescription:
        return self._models[0]

    def score(self, request: ScoreRequest, limit: float, progress: bool) -> ScoreResult:
        model = self._models.pop(0) if len(self._models) > 1 else self._models[0]
        self.calls += 1
        count = len(request.documents)
        rows = np.full((count, len(model.labels)), 2.0, np.float32)
        return ScoreResult(rows, [3] * count, Timings(), model)


def over(*models: ModelDescription) -> tuple[CrossEncoder, Embedder]:
    embedder = Embedder(*models)
    client: Any = type("Client", (), {"_embedder": embedder})()
    return CrossEncoder(client), embedder


def test_pairs_and_texts_alone_are_scored_by_one_model() -> None:
    ours, embedder = over(RERANKER, CLASSIFIER)
    assert ours.predict(PAIRS).tolist() == [[2.0] * 3] * 3
    assert embedder.calls == 3


def test_scores_go_through_the_activation_of_the_model_that_made_them() -> None:
    answered, _ = over(RERANKER, LOGITS)
    np.testing.assert_array_equal(answered.predict(PAIRS[:1]), sigmoid(np.float32([2.0])))
    assert answered.predict(PAIRS[:1]).tolist() == [2.0]


def test_a_model_of_several_labels_that_came_meanwhile_does_not_rank() -> None:
    ours, embedder = over(RERANKER)
    embedder.score = over(CLASSIFIER)[1].score  # type: ignore[method-assign]
    with pytest.raises(InvalidInput, match="this one has 3"):
        ours.rank("a query", ["one", "two"])
