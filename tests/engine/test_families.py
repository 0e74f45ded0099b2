"""Every family of models has sentence-transformers' vectors, whichever runtime serves it."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedshare.calls import EmbedRequest
from embedshare.engine.runtimes import embedder, proof
from embedshare.engine.runtimes.whole import WholeRuntime, WholeTokenizer, encode
from embedshare.errors import UnsupportedModel
from embedshare.providers.local import Local
from tests.engine.small_models import (
    BATCHES_MATTER,
    DIMENSION,
    FAMILIES,
    MODERN,
    MORE,
    bert,
    chat,
    more,
    pooled,
    saved,
    tokenizer,
    trunk,
)
from tests.engine.test_loading import settings_for
from tests.processes import LONG

WORDS = " ".join(f"Wörd{number}" for number in range(260))
TEXTS = ["model", "", "The QUICK brown Fox: Café São", "One model, many workers. " * 8, WORDS[:900], WORDS]

CONVERTED = {"Qwen3", "BERT, prompts left out"}
#: Models similar to others here; only EMBEDSHARE_LONG=1 tries them.
ALIKE = {"ModernBERT, a wide window", "BERT, do_lower_case", "BERT, Dense, Normalize", "BERT"}


def reference(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    size = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * size)


def assert_serves(engine: Local, real: Any, one_by_one: bool = False) -> None:
    if engine.description.runtime != "static" and isinstance(real.max_seq_length, int):
        real.max_seq_length = engine.description.max_seq_length

    def ours(prompt: str = "", **options: Any) -> np.ndarray:
        calls = [[text] for text in TEXTS] if one_by_one else [TEXTS]
        return np.concatenate([engine.embed(EmbedRequest(texts, prompt, **options)).rows for texts in calls])

    def theirs(prompt: str = "", **options: Any) -> np.ndarray:
        return np.stack([real.encode(text, prompt=prompt, **options) for text in TEXTS])

    assert_same(ours(), theirs())
    assert_same(ours("Some Prompt: "), theirs("Some Prompt: "))
    for prompt in filter(None, real.prompts.values()):
        assert_same(ours(prompt), theirs(prompt))
    assert_same(ours(dimensions=12), theirs(truncate_dim=12))
    for task in ("query", "document"):
        assert_same(ours(task=task), theirs(task=task))
    assert engine.description.dimension == real.encode("").shape[0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in ALIKE else ()) for name in FAMILIES]
)
def test_a_family_has_the_vectors_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    make, runtime = FAMILIES[name]
    folder = make(tmp_path)
    settings = settings_for(tmp_path, str(folder))
    if runtime == "openvino" and not LONG and name not in CONVERTED:  # a conversion takes seconds
        settings, runtime = settings_for(tmp_path, str(folder), runtime="torch"), "torch"
    engine = Local.load(settings, "cpu")
    assert engine.description.runtime == runtime
    assert_serves(engine, reference(folder), name in BATCHES_MATTER)
    if name in ("BERT, query_length and document_length", "BERT, prompts left out"):  # kept facts cover these
        again = Local.load(settings, "cpu")
        queries = EmbedRequest(TEXTS, "Some Prompt: ", task="query")
        assert_same(again.embed(queries).rows, engine.embed(queries).rows)
        again.close()
    engine.close()


@pytest.mark.parametrize("pooling", ["cls", pytest.param("max", marks=pytest.mark.long), "lasttoken"])
def test_a_prompt_is_left_out_of_any_pooling(pooling: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, pooled(bert(tmp_path), pooling, include_prompt=False))
    engine = Local.load(settings_for(tmp_path, str(folder), runtime="torch"), "cpu")
    assert engine.description.runtime == "torch"
    assert_serves(engine, reference(folder))
    engine.close()


def test_words_that_are_not_averaged_are_left_to_sentence_transformers(tmp_path: Path) -> None:
    words, *_ = reference(FAMILIES["WordEmbeddings"][0](tmp_path))
    folder = saved(tmp_path / "other", pooled(words, "max"))
    engine = Local.load(settings_for(tmp_path, str(folder)), "cpu")
    assert engine.description.runtime == "sentence-transformers"
    texts = ["one model", "many shared workers"]  # a text without words has minus infinity
    assert_same(engine.embed(EmbedRequest(texts)).rows, reference(folder).encode(texts))
    engine.close()


@pytest.mark.long
def test_short_texts_that_come_alone_have_their_vectors_in_every_fixed_shape(tmp_path: Path) -> None:
    """A causal model's graph is wrong in some fixed shapes (OpenVINO 2026.4.1)."""
    make, runtime = FAMILIES["Qwen3"]
    folder = make(tmp_path)
    engine = Local.load(settings_for(tmp_path, str(folder)), "cpu")
    assert engine.description.runtime == runtime == "openvino"
    engine.settle()
    real = reference(folder)
    for words in range(1, 31):
        text = " ".join(["word"] * words)
        ours = engine.embed(EmbedRequest([text])).rows[0]
        np.testing.assert_allclose(ours, real.encode(text), atol=1e-4, err_msg=text)
    engine.close()


@pytest.mark.long
@pytest.mark.parametrize("name", MORE)
def test_more_of_a_family_have_the_vectors_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    folder = more(tmp_path, name)
    engine = Local.load(settings_for(tmp_path, str(folder)), "cpu")
    assert_serves(engine, reference(folder), name.partition(",")[0] in BATCHES_MATTER)
    engine.close()


@pytest.mark.parametrize(
    ("window", "longest", "shown"), [(1500, 2048, True), (3000, 8192, False), (64, 8192, True)]
)
def test_the_longest_text_of_the_proof_shows_every_window_or_only_the_models_own_masks_are_tried(
    window: int, longest: int, shown: bool, tmp_path: Path
) -> None:
    config = {**MODERN, "local_attention": window, "max_position_embeddings": 8192}
    folder = saved(tmp_path, pooled(trunk(tmp_path, "ModernBert", config, tokenizer(longest))))
    model = reference(folder)
    assert proof.shows_windows(model) is shown
    tokens = len(model.tokenizer.encode(proof._long_text(model)))
    assert tokens > window if shown else tokens < 1024


def test_a_chat_template_that_changes_a_text_is_left_to_sentence_transformers(tmp_path: Path) -> None:
    trims = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
    model = reference(chat(tmp_path, trims))
    with pytest.raises(UnsupportedModel, match="more than put words around"):
        embedder.template_of(model, embedder.tokenizer_of(model))


def test_a_text_that_a_model_reads_by_itself_is_read_once_and_its_tokens_are_told(tmp_path: Path) -> None:
    model = reference(FAMILIES["WordEmbeddings"][0](tmp_path))
    read: list[str] = []
    preprocess = model.preprocess
    model.preprocess = lambda texts, **options: read.extend(texts) or preprocess(texts, **options)
    texts = ["one model", "many", "the quick brown fox: shared"]
    waiting = WholeTokenizer(model, 128)(texts)
    assert read == []
    expected = reference(tmp_path / "model").encode(texts)
    np.testing.assert_array_equal(
        WholeRuntime(model, DIMENSION, encode(model, DIMENSION)).run(waiting), expected
    )
    assert sorted(read) == sorted(texts)
    assert [len(text) for text in waiting] == [2, 1, 5]


def test_a_model_that_serves_itself_is_in_memory_once(tmp_path: Path) -> None:
    model = reference(FAMILIES["BERT, prompts left out"][0](tmp_path))
    counting = WholeTokenizer(model, 128)._model
    assert counting.tokenizer is not model.tokenizer
    for one, other in zip(model.parameters(), counting.parameters(), strict=True):
        assert one is other


def test_texts_that_were_counted_are_not_kept(tmp_path: Path) -> None:
    model = reference(FAMILIES["BERT, prompts left out"][0](tmp_path))
    runtime = WholeRuntime(model, DIMENSION, encode(model, DIMENSION))
    counting = WholeTokenizer(model, 128)
    text = weakref.ref(counted := Counted("one model, many workers"))
    assert counting.ids([counted]) == WholeTokenizer(reference(tmp_path / "model"), 128).ids([counted])
    assert len(runtime.run(counting([str(counted)]))) == 1
    del counted
    assert text() is None


class Counted(str):
    """A text that can be watched."""
