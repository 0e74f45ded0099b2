"""Cross-encoders have the scores of `CrossEncoder`, whichever runtime serves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedshare.activations import sigmoid
from embedshare.calls import EmbedRequest, ScoreRequest
from embedshare.engine.runtimes.whole import WholeRuntime
from embedshare.errors import EngineFailed, InvalidInput, NotServed, TooLarge
from embedshare.providers.local import Devices, Local
from tests.engine.small_kinds import BERT, cross_encoder
from tests.engine.small_models import DECODER, DIMENSION, tokenizer
from tests.engine.test_loading import settings_for
from tests.processes import environment, run_python

QUERY = "How do workers share one model?"
LONG = " ".join(f"Wörd{number}" for number in range(200))
DOCUMENTS = ["one model, many workers", "", "naïve 漢字 😀", "The QUICK brown Fox. " * 8, LONG]
ROBERTA = {**BERT, "pad_token_id": 1, "type_vocab_size": 1}
DEBERTA = {
    **BERT, "type_vocab_size": 0, "pooler_hidden_size": DIMENSION, "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "position_biased_input": False,
}  # fmt: skip
#: Architectures, and the runtime that serves them without OpenVINO.
ARCHITECTURES = {
    "Bert": BERT,
    "Roberta": ROBERTA,
    "XLMRoberta": ROBERTA,
    "DebertaV2": DEBERTA,
    "ModernBert": {**BERT, "local_attention": 16},
    "Qwen3": DECODER,
}
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}<Instruct>: {{ m['content'] }}\n"
    "{% elif m['role'] == 'query' %}<Query>: {{ m['content'] }}\n"
    "{% elif m['role'] == 'document' %}<Document>: {{ m['content'] }}{% endif %}{% endfor %} [end] "
)


def untyped() -> Any:
    """A tokenizer that does not tell the types of tokens, as RoBERTa's."""
    return tokenizer(model_input_names=["input_ids", "attention_mask"])


def reference(folder: Path) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu", local_files_only=True)


def loaded(folder: Path, **options: Any) -> Local:
    options = {"runtime": "torch", "dtype": "float32", **options}
    return Local.load(settings_for(folder.parent, str(folder), **options), "cpu")


def assert_scores(found: np.ndarray, real: Any, pairs: list[Any], **options: Any) -> None:
    """The sigmoid of the logits, as near as rerankers are compared."""
    import torch

    expected = real.predict(pairs, activation_fn=torch.nn.Identity(), **options)
    expected = expected.reshape(len(pairs), -1)
    assert found.shape == expected.shape
    np.testing.assert_allclose(sigmoid(found), sigmoid(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_has_the_scores_of_cross_encoder(name: str, tmp_path: Path) -> None:
    words = tokenizer() if name == "Bert" else untyped()
    folder = cross_encoder(tmp_path, family=name, config=ARCHITECTURES[name], words=words)
    engine, real = loaded(folder), reference(folder)
    assert engine.description.runtime == "torch"
    found = engine.score(ScoreRequest([QUERY], DOCUMENTS))
    assert_scores(found.rows, real, [(QUERY, text) for text in DOCUMENTS])
    assert found.token_counts[-1] == engine.description.max_seq_length == 128
    prompted = engine.score(ScoreRequest([QUERY], DOCUMENTS, prompt="Judge this: "))
    assert_scores(prompted.rows, real, [(QUERY, text) for text in DOCUMENTS], prompt="Judge this: ")
    engine.close()


def test_a_causal_language_model_scores_by_its_words_yes_and_no(tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path, family="Qwen3", config=DECODER, kind="ForCausalLM")
    engine = loaded(folder)
    assert engine.description.runtime == "torch"
    found = engine.score(ScoreRequest([QUERY], DOCUMENTS)).rows
    assert_scores(found, reference(folder), [(QUERY, text) for text in DOCUMENTS])
    engine.close()


def test_a_graph_scores_pairs_and_the_next_start_needs_no_torch(tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path, labels=3)
    real, pairs = reference(folder), [(QUERY, text) for text in DOCUMENTS]
    engine = loaded(folder, runtime="openvino")
    first = engine.score(ScoreRequest([QUERY], DOCUMENTS)).rows
    assert_scores(first, real, pairs)
    engine.close()
    program = (
        "import sys\n"
        "from embedshare.calls import ScoreRequest\n"
        "from embedshare.providers.local import Devices, Local\n"
        "from embedshare.settings import Settings\n"
        "engine = Local.load(Settings.load(), 'cpu')\n"
        f"rows = engine.score(ScoreRequest([{QUERY!r}], {DOCUMENTS!r})).rows\n"
        "assert not {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)\n"
        "print(engine.description.labels, rows.tolist())\n"
        "engine.close()\n"
    )
    settings = settings_for(tmp_path, str(folder), runtime="openvino", dtype="float32")
    said = run_python(program, env=environment(**settings.environment()))
    assert said.startswith("('LABEL_0', 'LABEL_1', 'LABEL_2') ")
    np.testing.assert_allclose(eval(said.partition(") ")[2]), first, rtol=0, atol=1e-5)


def test_a_single_text_is_classified_as_the_library_does(tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path, labels=3)
    engine, real = loaded(folder), reference(folder)
    found = engine.score(ScoreRequest([], DOCUMENTS)).rows
    for row, text in zip(found, DOCUMENTS, strict=True):
        np.testing.assert_allclose(row, real.predict(text), rtol=0, atol=4e-5)  # no activation of 3 labels
    assert engine.description.activation == "Identity"
    engine.close()


def test_each_document_may_have_a_query_of_its_own(tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path)
    engine = loaded(folder)
    queries = [QUERY, "", LONG, "a", "b"]
    found = engine.score(ScoreRequest(queries, DOCUMENTS)).rows
    assert_scores(found, reference(folder), list(zip(queries, DOCUMENTS, strict=True)))
    with pytest.raises(InvalidInput, match="2 queries came for 5 documents; allowed"):
        engine.score(ScoreRequest(["a", "b"], DOCUMENTS))
    engine.close()


def test_a_pair_that_would_be_truncated_is_too_large_where_truncation_is_off(tmp_path: Path) -> None:
    engine = loaded(cross_encoder(tmp_path))
    whole = engine.score(ScoreRequest([QUERY], DOCUMENTS[:1], truncate=False))
    assert whole.rows.shape == (1, 1)
    with pytest.raises(TooLarge, match="pair 1 is longer than the model's longest sequence, 128 tokens"):
        engine.score(ScoreRequest([QUERY], ["short", LONG], truncate=False))
    engine.close()


def test_a_lone_surrogate_is_named(tmp_path: Path) -> None:
    engine = loaded(cross_encoder(tmp_path))
    with pytest.raises(InvalidInput, match="text 1 holds a lone surrogate at position 2"):
        engine.score(ScoreRequest([QUERY], ["fine", "ab\ud800"]))
    engine.close()


def test_a_cross_encoder_embeds_nothing_and_tokenizes(tmp_path: Path) -> None:
    engine = loaded(cross_encoder(tmp_path))
    with pytest.raises(NotServed, match="does not give embeddings; it gives scores of pairs"):
        engine.embed(EmbedRequest(["a"], ""))
    assert engine.tokenize(EmbedRequest(["one"], "")) == [[101, 2028, 102]]
    stats = engine.stats()
    assert (stats["total_requests"], stats["failed_requests"]) == (1, 0)  # the load's own
    engine.close()


def test_a_chat_template_around_pairs_scores_as_the_library_does(tmp_path: Path) -> None:
    words = tokenizer(chat_template=CHAT)
    folder = cross_encoder(tmp_path, family="Qwen3", config=DECODER, kind="ForCausalLM", words=words)
    engine, real = loaded(folder), reference(folder)
    assert engine.description.runtime == "torch"
    pairs = [(QUERY, text) for text in DOCUMENTS]
    found = engine.score(ScoreRequest([QUERY], DOCUMENTS, prompt="Judge it"))
    assert_scores(found.rows, real, pairs, prompt="Judge it")
    with pytest.raises(NotServed, match="the served model's chat template takes a query and a document"):
        engine.score(ScoreRequest([], DOCUMENTS))
    engine.close()


def test_a_head_of_the_models_own_is_run_by_the_library(tmp_path: Path) -> None:
    xlnet = {"d_model": DIMENSION, "n_layer": 2, "n_head": 2, "d_inner": 64, "vocab_size": 30522}
    folder = cross_encoder(tmp_path, family="XLNet", config=xlnet, words=untyped())
    engine = loaded(folder)
    assert isinstance(engine._runtime, WholeRuntime)
    for text in DOCUMENTS:  # each alone: a batch's padding changes what the library itself scores
        found = engine.score(ScoreRequest([QUERY], [text]))
        assert_scores(found.rows, reference(folder), [(QUERY, text)])
    engine.close()


def test_a_model_that_fails_its_first_call_leaves_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, folder = Devices(), cross_encoder(tmp_path)
    settings = settings_for(tmp_path, str(folder), runtime="torch")

    def fails(*_: object) -> None:
        raise EngineFailed("it does not run")

    monkeypatch.setattr(Local, "probe", fails)
    with pytest.raises(EngineFailed):
        Local.load(settings, "cpu", devices=devices)
    assert devices.of("cpu", settings).schedulers == []
