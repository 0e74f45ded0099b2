"""Scores are shown as other servers and sentence-transformers show them, and ranked before that."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from embedshare import scores
from embedshare.calls import ScoreResult, Timings
from embedshare.errors import EngineFailed, NotServed
from embedshare.identity import ModelDescription

MODEL = ModelDescription(
    identity="0" * 64, model_name="a", dimension=0, max_seq_length=128, prompts={}, default_prompt_name=None,
    similarity_fn_name="", tokenizer_inputs=[], padding_token_id=0, device="cpu", dtype="float32",
    runtime="torch", family="cross-encoder", outputs=("scores",), labels=("LABEL_0",), activation="Tanh",
)  # fmt: skip


def scored(rows: Any, **model: Any) -> ScoreResult:
    described = msgspec.structs.replace(MODEL, **model)
    return ScoreResult(np.asarray(rows, np.float32), [3] * len(rows), Timings(), described)


def test_one_label_has_a_sigmoid_and_several_a_softmax_whatever_the_model_names() -> None:
    one, several = [[-200.0], [0.5], [90.0]], [[1.0, -2.0, 3.0], [0.0, 0.0, 90.0]]
    np.testing.assert_allclose(scores.normalized(scored(one)), torch.tensor(one).sigmoid(), atol=1e-6)
    found = scores.normalized(scored(several, labels=("a", "b", "c")))
    np.testing.assert_allclose(found, torch.tensor(several).softmax(dim=1), atol=1e-6)


def test_similarities_stay_as_they_are() -> None:
    found = scored([[7.0], [12.5]], family="multi-vector", outputs=("multi-vector",), activation=None)
    for shown in (scores.normalized(found), scores.activated(found), scores.raw(found)):
        np.testing.assert_array_equal(shown, found.rows)


def test_the_model_s_own_activation_is_applied_where_it_is_asked_for() -> None:
    rows = [[-1.0], [0.25]]
    np.testing.assert_allclose(scores.activated(scored(rows)), np.tanh(rows), atol=1e-6)
    np.testing.assert_array_equal(scores.activated(scored(rows, activation=None)), rows)
    np.testing.assert_array_equal(scores.raw(scored(rows)), rows)


def test_scores_that_a_sigmoid_makes_equal_are_ranked_apart_and_equal_ones_by_their_order() -> None:
    found = scored([[40.0], [60.0], [50.0], [60.0], [-3.0]])
    assert set(scores.normalized(found)[:4, 0]) == {1.0}
    assert scores.best_first(found) == [1, 3, 2, 0, 4]
    assert scores.best_first(found, 2) == [1, 3]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_is_an_error_that_names_the_document(wrong: float) -> None:
    found = scored([[1.0], [wrong]])
    for shown in (scores.normalized, scores.activated, scores.raw):
        with pytest.raises(EngineFailed, match="document 1 "):
            shown(found)


def test_a_model_without_labels_does_not_classify() -> None:
    scores.check_classifies(MODEL)
    with pytest.raises(NotServed, match="it gives embeddings"):
        scores.check_classifies(msgspec.structs.replace(MODEL, outputs=("dense",), labels=()))
