"""Models of several architectures run as in SentenceTransformer; and the needs of a second start."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger

from embedshare.calls import EmbedRequest
from embedshare.engine import weights
from embedshare.engine.graph_cache import GraphCache
from embedshare.engine.metadata import ModelMetadata
from embedshare.errors import ModelMismatch, UnsupportedModel
from embedshare.providers.local import Local
from embedshare.settings import ModelSettings, Settings
from tests.processes import add_own_code, environment, run_python

TEXTS = [
    "model",
    "one model, many workers",
    "",
    "How is an embedding shared? " * 4,
    "word " * 90,
    "naïve 漢字 😀",
]
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 260,
}  # fmt: skip


def small_model(folder: Path, architecture: str, pooling: str, max_seq_length: int = 64) -> Path:
    """A SentenceTransformer with random weights and the default model's tokenizer."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(7)
    sizes = (
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        if architecture == "DistilBert"
        else dict(SIZES)
    )
    if architecture == "ModernBert":
        sizes["initializer_range"] = 0.5  # with less, attention is almost even and hides a wrong mask
    config = getattr(transformers, f"{architecture}Config")(vocab_size=30522, pad_token_id=0, **sizes)
    getattr(transformers, f"{architecture}Model")(config).save_pretrained(folder / "base")
    for file in weights.find("all-MiniLM-L6-v2").glob("*token*"):
        shutil.copy(file, folder / "base")
    first = Transformer(str(folder / "base"), max_seq_length=max_seq_length)
    modules = [first, Pooling(32, pooling_mode=pooling), Dense(32, 24)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return folder / "model"


def smallest_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(1) / norms).min())


def settings_for(folder: Path, model: str, **changes: Any) -> Settings:
    given = ModelSettings(name=model, converted_dir=str(folder / "cache"), dtype="float32", device="cpu")
    return Settings(model=dataclasses.replace(given, **changes))


#: The models of every run. EMBEDSHARE_LONG=1 tries the others; test_families has similar ones.
QUICK = {
    ("auto", "Roberta", "mean"), ("auto", "DistilBert", "max"),
    ("torch", "MPNet", "mean"), ("torch", "Bert", "weightedmean"),
}  # fmt: skip
SEVERAL = [
    ("Bert", "mean"), ("Bert", "cls"), ("Roberta", "mean"), ("DistilBert", "max"), ("MPNet", "mean"),
    ("Bert", "lasttoken"), ("Bert", "weightedmean"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("runtime", "architecture", "pooling"),
    [
        pytest.param(runtime, *model, marks=() if (runtime, *model) in QUICK else pytest.mark.long)
        for runtime in ("auto", "torch")
        for model in SEVERAL
    ],
)
def test_other_models_give_what_sentence_transformer_gives(
    tmp_path: Path, runtime: str, architecture: str, pooling: str
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = small_model(tmp_path, architecture, pooling)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    settings = settings_for(tmp_path, str(folder), runtime=runtime)
    for _ in range(2):  # a first start, and one from the kept files
        engine = Local.load(settings, "cpu")
        np.testing.assert_allclose(engine.embed(EmbedRequest(TEXTS, "")).rows, expected, atol=2e-5)
        assert engine.description.dimension == 24
        assert engine.description.max_seq_length == 64


@pytest.mark.parametrize("runtime", ["auto", pytest.param("torch", marks=pytest.mark.long)])
def test_a_model_whose_attention_reaches_only_so_far_is_right_for_long_texts(
    tmp_path: Path, runtime: str
) -> None:
    """ModernBert's tokens attend to 64 others on each side: a mask for the whole text would admit more."""
    from sentence_transformers import SentenceTransformer

    folder = small_model(tmp_path, "ModernBert", "mean", max_seq_length=250)
    texts = [*TEXTS, " ".join(map(str, range(1000, 1240)))]
    engine = Local.load(settings_for(tmp_path, str(folder), runtime=runtime), "cpu")
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(engine.embed(EmbedRequest(texts, "")).rows, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["transformer", "static"])
def test_a_second_start_loads_no_torch(tmp_path: Path, kind: str) -> None:
    from tests.engine.small_models import FAMILIES

    make, _ = FAMILIES["StaticEmbedding"]
    model = str(small_model(tmp_path, "Bert", "mean") if kind == "transformer" else make(tmp_path))
    settings = settings_for(tmp_path, model)
    first = Local.load(settings, "cpu")
    rows = first.embed(EmbedRequest(TEXTS, "")).rows
    np.save(tmp_path / "rows.npy", rows)
    said = run_python(
        "import sys, numpy as np\n"
        "from embedshare.calls import EmbedRequest\n"
        "from embedshare.providers.local import Local\n"
        "from embedshare.settings import Settings\n"
        "engine = Local.load(Settings.load(), 'auto')\n"
        f"rows = np.load({str(tmp_path / 'rows.npy')!r})\n"
        f"texts = {TEXTS!r}\n"
        "assert np.abs(engine.embed(EmbedRequest(texts, '')).rows - rows).max() < 1e-5\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n",
        environment(
            EMBEDDING_CACHE_DIR=str(settings.model.converted_dir),
            EMBEDDING_DTYPE="float32",
            EMBEDDING_MODEL_NAME=model,
        ),
    )
    assert said.strip() == "[]"


def test_graphs_of_the_last_week_are_kept_and_of_older_ones_four(tmp_path: Path) -> None:
    """A server of many models converts none of them again and again."""
    for number in range(12):
        entry = tmp_path / f"entry {number}"
        entry.mkdir()
        (entry / "facts.json").touch()
        age_s = number * 86_400.0
        os.utime(entry, (time.time() - age_s, time.time() - age_s))
    GraphCache(tmp_path, "a version")._drop_oldest()
    assert sorted(int(entry.name.split()[1]) for entry in tmp_path.iterdir()) == list(range(7))
    for entry in tmp_path.iterdir():
        os.utime(entry, (1.0, 1.0))
    GraphCache(tmp_path, "a version")._drop_oldest()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_kept_graph_that_is_broken_is_made_anew(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, str(small_model(tmp_path, "Bert", "mean")))
    rows = Local.load(settings, "cpu").embed(EmbedRequest(TEXTS, "")).rows
    warnings: list[str] = []
    sink = logger.add(lambda message: warnings.append(str(message)), level="WARNING")
    try:
        for number, broken in enumerate(("graph.bin", "facts.json"), 1):
            (entry,) = (tmp_path / "cache" / "graphs").iterdir()
            (entry / broken).write_bytes(b"not what was kept")
            again = Local.load(settings, "cpu").embed(EmbedRequest(TEXTS, "")).rows
            np.testing.assert_allclose(again, rows, atol=1e-6)
            assert sum("Converting the model again" in warning for warning in warnings) == number, broken
    finally:
        logger.remove(sink)
    assert Local.load(settings, "cpu").description.runtime == "openvino"


def test_a_kept_graph_is_used_where_the_cache_can_only_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = GraphCache(tmp_path, "1")
    facts = ModelMetadata(2, 2, 128, {}, None, "cosine", ["input_ids"], 0, None)
    cache.keep("identity", facts, "{}", lambda path: path.touch())

    def read_only(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "utime", read_only)
    found = cache.find("identity")
    assert found is not None
    assert found.facts == facts


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    engine = Local.load(settings_for(tmp_path, str(small_model(tmp_path, "Bert", "mean"))), "cpu")
    assert engine.embed(EmbedRequest(["text"], "")).rows.shape == (1, 24)


def test_another_model_than_expected_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelMismatch, match="another vector space"):
        Local.load(settings_for(tmp_path, "all-MiniLM-L6-v2"), "cpu", expected_identity="0" * 64)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"runtime": "openvino", "dtype": "float16"}, "not in float16"),
        ({"runtime": "openvino", "device": "cuda"}, "EMBEDDING_DEVICE is cuda"),
    ],
)
def test_what_a_runtime_cannot_do_is_refused(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    settings = settings_for(tmp_path, "all-MiniLM-L6-v2", **changes)
    with pytest.raises(UnsupportedModel, match=says):
        Local.load(settings, settings.model.device)


def test_a_model_s_own_code_is_run_where_the_model_is_named_as_trusted_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_model(tmp_path, "Bert", "mean")
    ran = add_own_code(folder)
    settings = settings_for(tmp_path, str(folder), runtime="torch")
    for trusted in ((), ("all-MiniLM-L6-v2",), (f"{folder}-2", str(folder.parent))):
        with pytest.raises(UnsupportedModel, match="add its name to EMBEDDING_TRUST_REMOTE_CODE"):
            Local.load(
                dataclasses.replace(
                    settings, model=dataclasses.replace(settings.model, trust_remote_code=trusted)
                ),
                "cpu",
            )
        assert not ran.exists()
    monkeypatch.chdir(folder.parent)
    engine = Local.load(
        dataclasses.replace(
            settings, model=dataclasses.replace(settings.model, trust_remote_code=("other", folder.name))
        ),
        "cpu",
    )
    assert ran.exists()
    np.testing.assert_allclose(
        np.linalg.norm(engine.embed(EmbedRequest(TEXTS, "")).rows, axis=1), 1.0, atol=1e-5
    )
