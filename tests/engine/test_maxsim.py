"""MaxSim and MeanMaxSim are those of sentence-transformers, for documents of any length."""

from __future__ import annotations

import numpy as np
import pytest

from embedshare.engine import maxsim

dice = np.random.default_rng(5)


def vectors(tokens: int) -> np.ndarray:
    rows = dice.standard_normal((tokens, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


QUERIES = [vectors(tokens) for tokens in (1, 32, 7)]
DOCUMENTS = [vectors(tokens) for tokens in (3, 1, 200, 40, 5, 5)]


@pytest.mark.parametrize("mean", [False, True])
def test_scores_are_those_of_sentence_transformers(mean: bool) -> None:
    from sentence_transformers import util

    expected = (util.mean_maxsim if mean else util.maxsim)(QUERIES, DOCUMENTS).numpy()
    for query, row in zip(QUERIES, expected, strict=True):
        np.testing.assert_allclose(maxsim.scores(query, DOCUMENTS, mean), row, atol=1e-5)


def test_each_document_is_scored_with_its_query() -> None:
    asked = [2, 0, 1, 2, 0, 1]
    found = maxsim.of_pairs(QUERIES, DOCUMENTS, asked)
    for at, query in enumerate(asked):
        assert found[at] == pytest.approx(maxsim.scores(QUERIES[query], [DOCUMENTS[at]])[0], abs=1e-5)


def test_a_text_without_vectors_scores_0() -> None:
    nothing = vectors(0)
    assert maxsim.scores(QUERIES[1], [nothing, DOCUMENTS[0], nothing])[[0, 2]].tolist() == [0.0, 0.0]
    assert maxsim.scores(nothing, DOCUMENTS, mean=True).tolist() == [0.0] * len(DOCUMENTS)
    assert maxsim.scores(QUERIES[1], []).shape == (0,)
    assert maxsim.of_pairs([], [], []).shape == (0,)


@pytest.mark.parametrize("most", [1, 300, 4000])
def test_few_products_at_once_give_the_same_scores(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    expected = maxsim.scores(QUERIES[2], DOCUMENTS)
    monkeypatch.setattr(maxsim, "_PRODUCTS", most)
    np.testing.assert_allclose(maxsim.scores(QUERIES[2], DOCUMENTS), expected, atol=1e-6)
