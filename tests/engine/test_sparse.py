"""SPLADE models give the weights of SparseEncoder, from packed batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedshare.calls import OutputsRequest, SparseRows
from embedshare.providers.local import Local
from tests.engine import small_kinds
from tests.engine.small_models import SIZES
from tests.engine.test_loading import TEXTS, settings_for

MODERN = {
    **SIZES, "vocab_size": 30522, "pad_token_id": 0, "bos_token_id": 101, "eos_token_id": 102,
    "cls_token_id": 101, "sep_token_id": 102, "decoder_bias": True, "initializer_cutoff_factor": 2.0,
}  # fmt: skip
DISTIL = {
    "vocab_size": 30522, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "initializer_range": 0.3,
}  # fmt: skip


def library(model: Path, **options: Any) -> Any:
    from sentence_transformers import SparseEncoder

    return SparseEncoder(str(model), device="cpu", **options)


def weights_of(local: Local, texts: list[str], **options: Any) -> SparseRows:
    given = {"prompt": "", **options}
    found = local.outputs(OutputsRequest(texts, ("sparse",), **given)).sparse
    assert found is not None
    return found


def dense(rows: SparseRows) -> np.ndarray:
    """The weights as an array (texts, vocabulary)."""
    found = np.zeros((len(rows.offsets) - 1, rows.width), np.float32)
    for row, start, stop in zip(found, rows.offsets, rows.offsets[1:], strict=False):
        row[rows.indices[start:stop]] = rows.values[start:stop]
    return found


def expected_of(model: Any, texts: list[str], **options: Any) -> np.ndarray:
    rows: np.ndarray = model.encode(texts, convert_to_sparse_tensor=False, **options).numpy()
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_kinds.sparse(tmp_path_factory.mktemp("sparse"), prompts=small_kinds.PROMPTS)


@pytest.fixture(scope="module")
def local(model: Path) -> Any:
    made = Local.load(settings_for(model.parent, str(model)), "cpu")
    yield made
    made.close()


def test_weights_are_those_of_the_library(local: Local, model: Path) -> None:
    found = weights_of(local, TEXTS)
    expected = expected_of(library(model), TEXTS)
    np.testing.assert_allclose(dense(found), expected, atol=1e-5)
    assert local.description.runtime == "openvino"
    assert found.width == local.description.vocabulary == 30522
    assert found.indices.dtype == np.int32
    assert (expected > 0).sum() > 20 * len(TEXTS)


def test_a_text_has_its_words_in_ascending_order_and_no_zero(local: Local) -> None:
    found = weights_of(local, TEXTS)
    for start, stop in zip(found.offsets, found.offsets[1:], strict=False):
        assert (np.diff(found.indices[start:stop]) > 0).all()
    assert (found.values > 0).all()


def test_a_text_has_the_same_weights_alone_and_in_a_batch(local: Local) -> None:
    local.settle()  # a single short text has a graph of its own
    texts = [" ".join(TEXTS[3].split()[:words]) for words in range(1, 25)]
    together = dense(weights_of(local, texts))
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(dense(weights_of(local, [text]))[0], row, atol=1e-5)


def test_prompts_are_those_of_encode_query_and_encode_document(local: Local, model: Path) -> None:
    own = library(model)
    for name, encode in (("query", own.encode_query), ("document", own.encode_document)):
        found = dense(weights_of(local, TEXTS, prompt=None, prompt_name=name, task=name))
        np.testing.assert_allclose(found, encode(TEXTS, convert_to_sparse_tensor=False).numpy(), atol=1e-5)


@pytest.mark.parametrize("most", [1, 10, 100_000])
def test_the_largest_weights_are_kept(local: Local, model: Path, most: int) -> None:
    found = weights_of(local, TEXTS, max_active_dims=most)
    np.testing.assert_allclose(
        dense(found), expected_of(library(model), TEXTS, max_active_dims=most), atol=1e-5
    )
    assert np.diff(found.offsets).max() <= most


def test_a_model_of_few_weights_keeps_its_own_number(tmp_path: Path) -> None:
    model = small_kinds.sparse(tmp_path, max_active_dims=7)
    local = Local.load(settings_for(tmp_path, str(model)), "cpu")
    assert local.description.max_active_dims == 7
    assert local.description.runtime == "openvino"
    np.testing.assert_allclose(dense(weights_of(local, TEXTS)), expected_of(library(model), TEXTS), atol=1e-5)
    assert np.diff(weights_of(local, TEXTS, max_active_dims=20).offsets).max() == 20
    local.close()


@pytest.mark.parametrize(
    ("family", "config", "pooling", "runtime"),
    [
        ("Roberta", {**small_kinds.BERT, "pad_token_id": 1}, {"pooling_strategy": "sum"}, "auto"),
        ("DistilBert", DISTIL, {"activation_function": "log1p_relu"}, "auto"),
        ("ModernBert", MODERN, {}, "torch"),
    ],
)
def test_other_language_models_and_poolings_run_packed(
    tmp_path: Path, family: str, config: dict[str, Any], pooling: dict[str, Any], runtime: str
) -> None:
    model = small_kinds.sparse(tmp_path, family, config, pooling)
    local = Local.load(settings_for(tmp_path, str(model), runtime=runtime), "cpu")
    assert local.description.runtime == {"auto": "openvino", "torch": "torch"}[runtime]
    expected = expected_of(library(model), TEXTS)
    np.testing.assert_allclose(dense(weights_of(local, TEXTS)), expected, rtol=1e-5, atol=1e-5)
    local.close()
