"""Which candidates are scored, which models can score, and the order of the scores."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from embedshare import reranking
from embedshare.calls import ScoreResult, Timings
from embedshare.errors import EngineFailed, InvalidInput, NotServed
from embedshare.identity import ModelDescription

MODEL = ModelDescription("a" * 64, "reranker", 0, 512, {}, None, "cosine", [], 0, "cpu", "float32", "torch")


def model(**changes: Any) -> ModelDescription:
    return msgspec.structs.replace(MODEL, **changes)


def scored(values: list[float], **changes: Any) -> ScoreResult:
    rows = np.array(values, np.float32)[:, None]
    return ScoreResult(rows, [1] * len(values), Timings(), model(outputs=("scores",), **changes))


@pytest.mark.parametrize(("top_k", "asked", "count"), [
    (10, None, 40), (25, None, 100), (60, None, 100), (300, None, 300), (10, 10, 10), (10, 1000, 1000),
])  # fmt: skip
def test_the_number_of_candidates(top_k: int, asked: int | None, count: int) -> None:
    assert reranking.candidates(top_k, asked) == count


@pytest.mark.parametrize("asked", [9, 0, -1, 1001])
def test_fewer_candidates_than_results_or_too_many_are_refused(asked: int) -> None:
    with pytest.raises(InvalidInput, match=r"allowed: 10 \(the results wanted\) to 1,000"):
        reranking.candidates(10, asked)


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [(("scores",), ("relevance",)), (("multi-vector",), ()), (("dense", "multi-vector"), ())],
)
def test_models_with_one_score_of_a_pair_can_rerank(
    outputs: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    reranking.check(model(outputs=outputs, labels=labels))


@pytest.mark.parametrize(
    ("outputs", "labels", "can"),
    [
        (("dense",), (), "embeddings"),
        (("sparse",), (), "sparse embeddings"),
        (("scores",), ("a", "b"), "classif"),
    ],
)
def test_other_models_are_refused_with_what_they_can(
    outputs: tuple[str, ...], labels: tuple[str, ...], can: str
) -> None:
    with pytest.raises(NotServed, match=f"reranker cannot rerank.*it gives {can}"):
        reranking.check(model(outputs=outputs, labels=labels))


def test_the_best_score_comes_first_and_equal_ones_keep_their_order() -> None:
    found = reranking.ordered("abcd", scored([1.0, 3.0, 1.0, 2.0]))
    assert [one for one, _ in found] == list("bdac")
    assert reranking.ordered("", scored([])) == []


@pytest.mark.parametrize("activation", [None, "Identity", "Sigmoid"])
def test_a_cross_encoders_scores_are_between_0_and_1_whatever_activation_it_names(activation: Any) -> None:
    [(_, best), (_, other)] = reranking.ordered("ab", scored([0.0, 2.0], activation=activation))
    assert best == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert other == 0.5


def test_similarities_of_late_interaction_stay_as_they_are() -> None:
    late = scored([3.0, 7.5])
    late = late._replace(description=model(outputs=("multi-vector",)))
    assert reranking.ordered("ab", late) == [("b", 7.5), ("a", 3.0)]


def test_scores_that_the_sigmoid_makes_equal_stay_in_their_order() -> None:
    found = reranking.ordered("abc", scored([30.0, 50.0, 40.0]))
    assert found == [("b", 1.0), ("c", 1.0), ("a", 1.0)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_an_error(value: float) -> None:
    with pytest.raises(EngineFailed, match="score of document 1 is not a finite number"):
        reranking.ordered("ab", scored([1.0, value]))
