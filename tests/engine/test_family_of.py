"""A folder's files say which family of models it is; a setting or a models' file may say another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedshare.calls import UNBOUNDED, EmbedRequest, OutputsRequest, ScoreRequest
from embedshare.engine import families, maxsim
from embedshare.engine.families import family_of
from embedshare.engine.text_outputs import normalized, sparse_rows, token_rows
from embedshare.errors import NotServed
from embedshare.identity import identity_of
from embedshare.models.spec import ModelSpec
from embedshare.providers.local import Local
from embedshare.settings import Settings
from tests.engine.small_kinds import cross_encoder, multi_vector, sparse
from tests.engine.test_loading import settings_for


@pytest.mark.parametrize(
    ("files", "family"),
    [
        ({}, "embedding"),
        ({"config_sentence_transformers.json": {"model_type": "SentenceTransformer"}}, "embedding"),
        ({"config_sentence_transformers.json": {"model_type": "CrossEncoder"}}, "cross-encoder"),
        ({"config_sentence_transformers.json": {"model_type": "SparseEncoder"}}, "sparse"),
        ({"config_sentence_transformers.json": {"model_type": "MultiVectorEncoder"}}, "multi-vector"),
        ({"config_sentence_transformers.json": {"model_type": "ColBERT"}}, "multi-vector"),
        ({"config_sentence_transformers.json": {"model_type": "A class of later"}}, "embedding"),
        ({"config.json": {"architectures": ["BertModel"]}}, "embedding"),
        ({"config.json": {"architectures": ["BertForSequenceClassification"]}}, "cross-encoder"),
        ({"config.json": {"architectures": ["HF_ColBERT"]}}, "multi-vector"),
        ({"config.json": {"architectures": None}}, "embedding"),
        ({"config.json": {"architectures": 5}, "modules.json": 7}, "embedding"),
        (
            {
                "config.json": {"architectures": ["BertForSequenceClassification"]},
                "modules.json": [{"type": "a.Transformer"}, {"type": "a.Pooling"}],
            },
            "embedding",
        ),
        ({"modules.json": [{"type": "a.MLMTransformer"}, {"type": "b.SpladePooling"}]}, "sparse"),
    ],
)
def test_files_say_the_family(files: dict[str, Any], family: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert family_of(tmp_path) == family


def test_the_identity_of_an_embedding_model_is_that_of_its_files_and_others_have_their_own(
    tmp_path: Path,
) -> None:
    folder = cross_encoder(tmp_path)
    found = {family: identity_of(folder, family) for family in ("embedding", "cross-encoder", "sparse")}
    assert len(set(found.values())) == 3
    assert found["embedding"] == identity_of(folder)


def test_a_setting_or_a_models_field_says_another_family(tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path)
    settings = settings_for(tmp_path, str(folder), runtime="torch")
    assert families.locate(settings)[1:] == ("cross-encoder", identity_of(folder, "cross-encoder"))
    forced = ModelSpec(id="a", name=str(folder), family="embedding").settings(Settings())
    assert families.locate(forced)[1:] == ("embedding", identity_of(folder))
    engine = Local.load(settings.with_values({"EMBEDDING_FAMILY": "embedding"}), "cpu")
    assert engine.description.family == "embedding"
    assert engine.embed(EmbedRequest(["a"], "")).rows.shape == (1, 32)
    with pytest.raises(NotServed, match="does not give scores; it gives embeddings"):
        engine.score(ScoreRequest(["a"], ["b"]))
    engine.close()


def test_maxsim_is_the_librarys() -> None:
    from sentence_transformers.util import maxsim as theirs

    dice = np.random.default_rng(3)
    query = normalized(dice.standard_normal((5, 8), np.float32))
    documents = [normalized(dice.standard_normal((n, 8), np.float32)) for n in (4, 1, 9)]
    expected = theirs([query], documents).numpy()[0]
    np.testing.assert_allclose(maxsim.scores(query, documents), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(maxsim.scores(query, documents, mean=True), expected / 5, rtol=0, atol=1e-6)


def test_what_has_no_vectors_scores_zero() -> None:
    none, some = np.empty((0, 8), np.float32), np.ones((2, 8), np.float32)
    assert maxsim.scores(some, [none, some]).tolist() == [0.0, 16.0]
    assert maxsim.scores(none, [some]).tolist() == [0.0]
    assert maxsim.scores(some, []).shape == (0,)


def test_the_largest_weights_are_kept_in_the_order_of_tokens() -> None:
    texts = [
        (np.array([1, 5, 7, 9], np.int32), np.array([0.5, 3.0, 1.0, 2.0], np.float32)),
        (np.array([2], np.int32), np.array([1.0], np.float32)),
        (np.array([], np.int32), np.array([], np.float32)),
    ]
    found = sparse_rows(texts, 10, 2)
    assert found.offsets.tolist() == [0, 2, 3, 3]
    assert found.indices.tolist() == [5, 9, 2]
    assert found.values.tolist() == [3.0, 2.0, 1.0]
    assert sparse_rows(texts, 10, None).indices.tolist() == [1, 5, 7, 9, 2]
    assert token_rows([np.ones((2, 3), np.float32), np.empty((0, 3), np.float32)], 3).offsets.tolist() == [
        0, 2, 2,
    ]  # fmt: skip


def test_a_sparse_model_gives_weights_alone(tmp_path: Path) -> None:
    engine = Local.load(settings_for(tmp_path, str(sparse(tmp_path)), runtime="torch"), "cpu")
    assert (engine.description.outputs, engine.description.vocabulary) == (("sparse",), 30522)
    with pytest.raises(NotServed, match="does not give dense; it gives sparse embeddings"):
        engine.outputs(OutputsRequest(["a"], ("dense", "sparse"), ""))
    with pytest.raises(NotServed, match="does not give scores"):
        engine.score(ScoreRequest(["a"], ["b"]))
    assert engine.ask("health", UNBOUNDED)["status"] == "ok"
    engine.close()


def test_late_interaction_scores_as_the_library_does(tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    prompts = {"query": "query: ", "document": "passage: "}
    folder = multi_vector(tmp_path, prompts=prompts)
    engine = Local.load(settings_for(tmp_path, str(folder), runtime="torch"), "cpu")
    real = MultiVectorEncoder(str(folder), device="cpu")
    documents = ["one model, many workers", "", "The QUICK brown Fox. " * 9]
    found = engine.score(ScoreRequest(["who shares it?"], documents))
    expected = real.similarity(real.encode_query(["who shares it?"]), real.encode_document(documents))
    np.testing.assert_allclose(found.rows[:, 0], expected[0].numpy(), rtol=1e-5, atol=1e-4)
    queries = ["who", "what", "who"]
    pairwise = real.similarity_pairwise(real.encode_query(queries), real.encode_document(documents))
    found = engine.score(ScoreRequest(queries, documents))
    np.testing.assert_allclose(found.rows[:, 0], pairwise.numpy(), rtol=1e-5, atol=1e-4)
    with pytest.raises(NotServed, match="scores of texts without a query"):
        engine.score(ScoreRequest([], documents))
    engine.close()
