"""A model in the files of BGE-M3 gives three outputs of one pass, each as it is alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedshare import model_files
from embedshare.calls import EmbedRequest, OutputsRequest, OutputsResult, ScoreRequest
from embedshare.engine import weights
from embedshare.errors import WeightsCorrupted
from embedshare.identity import identity_of
from embedshare.providers.local import Local
from tests.engine import small_kinds
from tests.engine.test_loading import TEXTS, settings_for
from tests.processes import environment, run_python

ALL = ("dense", "sparse", "multi-vector")
REPEATED = [*TEXTS, "one one two two one", "[UNK] unknown [SEP] and special"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_kinds.several(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def local(model: Path) -> Any:
    made = Local.load(settings_for(model.parent, str(model)), "cpu")
    yield made
    made.close()


def outputs(local: Local, texts: list[str], wanted: tuple[str, ...] = ALL, **options: Any) -> OutputsResult:
    return local.outputs(OutputsRequest(texts, wanted, **options))  # type: ignore[arg-type]


def reference(model: Path, text: str) -> tuple[np.ndarray, dict[int, float], np.ndarray]:
    """FlagEmbedding's rules, token by token: a text's vector, its weights, and its tokens' vectors."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    words, trunk = AutoTokenizer.from_pretrained(str(model)), AutoModel.from_pretrained(str(model)).eval()
    sparse, colbert = (torch.load(model / f"{name}_linear.pt") for name in ("sparse", "colbert"))
    given = words([text], truncation=True, max_length=128, return_tensors="pt")
    with torch.inference_mode():
        hidden = trunk(input_ids=given["input_ids"], attention_mask=given["attention_mask"])[0][0]
        each = torch.relu(hidden @ sparse["weight"].T + sparse["bias"])[:, 0].tolist()
        vectors = hidden[1:] @ colbert["weight"].T + colbert["bias"]
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
        dense = hidden[0] / hidden[0].norm()
    left_out = {words.cls_token_id, words.eos_token_id, words.pad_token_id, words.unk_token_id}
    found: dict[int, float] = {}
    for token, weight in zip(given["input_ids"][0].tolist(), each, strict=True):
        if weight > 0 and token not in left_out:
            found[token] = max(found.get(token, 0.0), weight)
    return dense.numpy(), found, vectors.numpy()


def test_the_outputs_are_those_of_flagembeddings_rules(local: Local, model: Path) -> None:
    assert local.description.runtime == "openvino"
    assert local.description.outputs == ALL
    assert local.description.vocabulary == 30522
    found = outputs(local, REPEATED)
    assert found.dense is not None
    assert found.sparse is not None
    assert found.multi_vector is not None
    for at, text in enumerate(REPEATED):
        dense, words, vectors = reference(model, text)
        np.testing.assert_allclose(found.dense[at], dense, atol=1e-5)
        start, stop = found.sparse.offsets[at : at + 2]
        assert found.sparse.indices[start:stop].tolist() == sorted(words)
        expected = [words[token] for token in sorted(words)]
        np.testing.assert_allclose(found.sparse.values[start:stop], expected, atol=1e-5)
        start, stop = found.multi_vector.offsets[at : at + 2]
        np.testing.assert_allclose(found.multi_vector.rows[start:stop], vectors, atol=1e-5)


def test_each_output_alone_is_the_same(local: Local) -> None:
    together = outputs(local, REPEATED)
    dense = outputs(local, REPEATED, ("dense",))
    sparse = outputs(local, REPEATED, ("sparse",), max_active_dims=3)
    tokens = outputs(local, REPEATED, ("multi-vector",))
    assert [one is None for one in dense[:3]] == [False, True, True]
    assert [one is None for one in sparse[:3]] == [True, False, True]
    np.testing.assert_array_equal(dense.dense, together.dense)  # type: ignore[arg-type]
    np.testing.assert_array_equal(tokens.multi_vector.rows, together.multi_vector.rows)  # type: ignore[union-attr]
    assert np.diff(sparse.sparse.offsets).max() == 3  # type: ignore[union-attr]
    assert set(sparse.sparse.values) <= set(together.sparse.values)  # type: ignore[union-attr]


def test_embed_gives_the_vectors_of_sentence_transformers(local: Local, model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(model), device="cpu").encode(TEXTS)
    found = local.embed(EmbedRequest(TEXTS, ""))
    np.testing.assert_allclose(found.rows, expected, atol=1e-5)
    assert local.embed(EmbedRequest([], "")).rows.shape == (0, 32)


def test_a_single_short_text_has_all_outputs_in_its_own_graph(local: Local) -> None:
    local.settle()
    texts = [" ".join(TEXTS[3].split()[:words]) for words in range(1, 12)]
    together = outputs(local, texts)
    for at, text in enumerate(texts):
        alone = outputs(local, [text])
        np.testing.assert_allclose(alone.dense[0], together.dense[at], atol=1e-5)  # type: ignore[index]
        start, stop = together.multi_vector.offsets[at : at + 2]  # type: ignore[union-attr]
        expected = together.multi_vector.rows[start:stop]  # type: ignore[union-attr]
        np.testing.assert_allclose(alone.multi_vector.rows, expected, atol=1e-5)  # type: ignore[union-attr]


def test_a_score_is_the_mean_over_the_query_as_flagembedding_has_it(local: Local, model: Path) -> None:
    _, _, query = reference(model, TEXTS[1])
    expected = [(query @ reference(model, text)[2].T).max(axis=1).mean() for text in TEXTS]
    found = local.score(ScoreRequest([TEXTS[1]], TEXTS)).rows[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_torch_gives_the_same_outputs(local: Local, model: Path, tmp_path: Path) -> None:
    other = Local.load(settings_for(tmp_path, str(model), runtime="torch"), "cpu")
    assert other.description.runtime == "torch"
    found, expected = outputs(other, REPEATED), outputs(local, REPEATED)
    np.testing.assert_allclose(found.dense, expected.dense, atol=1e-5)  # type: ignore[arg-type]
    for array, same in zip(found.sparse, expected.sparse, strict=True):  # type: ignore[arg-type]
        np.testing.assert_allclose(array, same, atol=1e-5)
    np.testing.assert_allclose(found.multi_vector.rows, expected.multi_vector.rows, atol=1e-5)  # type: ignore[union-attr]
    other.close()


def test_a_start_from_the_cache_needs_no_torch(model: Path, tmp_path: Path) -> None:
    """Of each kind of model with such outputs."""
    kinds = [model, small_kinds.sparse(tmp_path / "s"), small_kinds.multi_vector(tmp_path / "m")]
    names = [str(one) for one in kinds]
    for name in names:
        Local.load(settings_for(tmp_path, name), "cpu").close()
    code = f"""
import sys
from embedshare.calls import OutputsRequest
from embedshare.providers.local import Local
from tests.engine.test_loading import settings_for
from pathlib import Path
for name in {names!r}:
    local = Local.load(settings_for(Path({str(tmp_path)!r}), name), "cpu")
    found = local.outputs(OutputsRequest(["one model"], local.description.outputs, prompt=""))
    print(local.description.runtime, local.description.outputs, "torch" in sys.modules, found.tokens)
"""
    said = run_python(code, environment())
    assert said.splitlines() == [
        f"openvino {ALL} False 4", "openvino ('sparse',) False 4", "openvino ('multi-vector',) False 4",
    ]  # fmt: skip


def test_the_layers_count_for_the_identity_and_come_from_the_hub(model: Path) -> None:
    import torch

    before = identity_of(model)
    layer = torch.load(model / "sparse_linear.pt")
    torch.save({**layer, "bias": layer["bias"] + 1}, model / "changed.pt")
    kept = (model / "sparse_linear.pt").rename(model / "kept.pt")
    (model / "changed.pt").rename(model / "sparse_linear.pt")
    changed = identity_of(model)
    kept.replace(model / "sparse_linear.pt")
    assert changed != before == identity_of(model)
    assert set(model_files.TOKEN_LAYERS) <= set(weights._HUB_PATTERNS)


def test_layers_that_are_no_layers_are_refused(tmp_path: Path) -> None:
    model = small_kinds.several(tmp_path)
    (model / "colbert_linear.pt").write_bytes(b"no layer")
    with pytest.raises(WeightsCorrupted, match=r"colbert_linear\.pt"):
        Local.load(settings_for(tmp_path, str(model)), "cpu")
