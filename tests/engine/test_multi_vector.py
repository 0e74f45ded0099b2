"""ColBERT-like models give the vectors of MultiVectorEncoder, from packed batches, and its scores."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedshare.calls import OutputsRequest, ScoreRequest
from embedshare.engine import late_scores
from embedshare.providers.local import Local
from tests.engine import small_kinds
from tests.engine.test_loading import TEXTS, settings_for
from tests.engine.test_sparse import MODERN

QUERIES = ["model", "How is one model shared by many workers?", ""]
FIXED = {"strategy": "fixed", "attend": False, "token": None, "length": 32}
TASKS = (None, "query", "document")


def library(model: Path) -> Any:
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(model), device="cpu")


def vectors_of(local: Local, texts: list[str], task: str | None, **options: Any) -> list[np.ndarray]:
    given = {"prompt": "", **options}
    found = local.outputs(OutputsRequest(texts, ("multi-vector",), task=task, **given)).multi_vector
    assert found is not None
    return np.split(found.rows, found.offsets[1:-1])


def check(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [one.shape for one in found] == [one.shape for one in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def check_all(local: Local, own: Any, texts: list[str] = TEXTS) -> None:
    for task in TASKS:
        check(vectors_of(local, texts, task), own.encode(texts, prompt="", task=task, convert_to_numpy=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ColBERT's own ways: queries filled up with tokens that others do not see, punctuation skipped."""
    return small_kinds.multi_vector(
        tmp_path_factory.mktemp("multi-vector"),
        first={"query_expansion": FIXED, "document_length": 48},
        mask={"skiplist_words": list(string.punctuation)},
        prompts=small_kinds.PROMPTS,
    )


@pytest.fixture(scope="module")
def local(model: Path) -> Any:
    made = Local.load(settings_for(model.parent, str(model)), "cpu")
    yield made
    made.close()


def test_vectors_are_those_of_the_library_for_each_task(local: Local, model: Path) -> None:
    assert local.description.runtime == "openvino"
    assert local.description.token_dimension == 24
    check_all(local, library(model), [*TEXTS, *QUERIES, "(punctuation): isn't it -- skipped?!"])


def test_a_short_query_is_filled_up_and_punctuation_of_documents_skipped(local: Local) -> None:
    assert [len(one) for one in vectors_of(local, QUERIES, "query")] == [32, 32, 32]
    assert len(vectors_of(local, ["a, b."], "document")[0]) == len(vectors_of(local, ["a b"], None)[0]) == 4


def test_prompts_are_those_of_encode_query_and_encode_document(local: Local, model: Path) -> None:
    own = library(model)
    for name, encode in (("query", own.encode_query), ("document", own.encode_document)):
        found = vectors_of(local, TEXTS, name, prompt=None, prompt_name=name)
        check(found, encode(TEXTS, convert_to_numpy=True))


def test_a_text_has_the_same_vectors_alone_and_in_a_batch(local: Local) -> None:
    local.settle()  # a single short text has a graph of its own
    texts = [" ".join(TEXTS[3].split()[:words]) for words in range(1, 25)]
    for task in TASKS:
        together = vectors_of(local, texts, task)
        check([vectors_of(local, [text], task)[0] for text in texts], together)


def test_a_score_is_the_similarity_of_the_library(local: Local, model: Path) -> None:
    own = library(model)
    expected = own.similarity(own.encode_query(QUERIES), own.encode_document(TEXTS)).numpy()
    for query, row in zip(QUERIES, expected, strict=True):
        found = local.score(ScoreRequest([query], TEXTS))
        assert found.rows.shape == (len(TEXTS), 1)
        np.testing.assert_allclose(found.rows[:, 0], row, atol=1e-4)
    pairs = [QUERIES[at % 3] for at in range(len(TEXTS))]
    found = local.score(ScoreRequest(pairs, TEXTS))
    np.testing.assert_allclose(
        found.rows[:, 0], [expected[at % 3, at] for at in range(len(TEXTS))], atol=1e-4
    )


def test_long_lists_are_scored_in_groups_whose_vectors_are_limited(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [QUERIES[at % 3] for at in range(len(TEXTS))]
    requests = [ScoreRequest([QUERIES[0]], TEXTS), ScoreRequest(pairs, TEXTS)]
    whole = [local.score(request) for request in requests]
    computed: list[list[int]] = []
    compute = local.scheduler.compute

    def counted(sequences: list[Any], **options: Any) -> Any:
        computed.append(list(map(len, sequences)))
        return compute(sequences, **options)

    monkeypatch.setattr(local.scheduler, "compute", counted)
    monkeypatch.setattr(late_scores, "HELD_BYTES", 4 * 24 * 100)
    for request, expected in zip(requests, whole, strict=True):
        found = local.score(request)
        np.testing.assert_allclose(found.rows, expected.rows, atol=1e-5)
        assert found.token_counts == expected.token_counts
        assert len(computed) > 1
        assert max(map(sum, computed)) <= 100
        computed.clear()


@pytest.mark.parametrize(
    ("family", "config", "first", "mask", "options", "runtime"),
    [
        (
            "ModernBert",
            MODERN,
            {"query_expansion": {**FIXED, "strategy": "min", "attend": True, "length": 16}},
            {"skiplist_words": ["."], "skiplist_tasks": ["query", "document"]},
            {"similarity_fn_name": "meanmaxsim"},
            "openvino",
        ),
        (
            "XLMRoberta",
            small_kinds.BERT,
            {"query_length": 12, "query_expansion": {**FIXED, "length": 12}},
            {"keep_only_token_ids": [101, 2773, 2944]},
            {},
            "torch",
        ),
    ],
)
def test_other_transformers_and_ways_to_fill_and_skip_run_packed(
    tmp_path: Path,
    family: str,
    config: dict[str, Any],
    first: dict[str, Any],
    mask: dict[str, Any],
    options: dict[str, Any],
    runtime: str,
) -> None:
    model = small_kinds.multi_vector(tmp_path, family, config, first, mask, **options)
    local = Local.load(settings_for(tmp_path, str(model), runtime=runtime), "cpu")
    assert local.description.runtime == runtime
    own = library(model)
    check_all(local, own)
    expected = own.similarity(own.encode_query(QUERIES), own.encode_document(TEXTS)).numpy()
    found = local.score(ScoreRequest(QUERIES[1:2], TEXTS)).rows[:, 0]
    np.testing.assert_allclose(found, expected[1], atol=1e-4)
    local.close()


def test_a_model_with_a_token_pooling_runs_in_the_library(tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    own = library(small_kinds.multi_vector(tmp_path))
    modules = [*own, HierarchicalTokenPooling(2)]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path / "pooled"))
    local = Local.load(settings_for(tmp_path, str(tmp_path / "pooled")), "cpu")
    assert local.description.runtime == "sentence-transformers"
    check_all(local, library(tmp_path / "pooled"))
    local.close()
