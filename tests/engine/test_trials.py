"""A model is served in the precision that is close enough in its first runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger

from embedshare.calls import EmbedRequest
from embedshare.engine import weights
from embedshare.engine.graph_cache import KeptTrials
from embedshare.engine.runtimes import first_runs, openvino, precision
from embedshare.engine.trials import LEAST_COSINE, KeptProof, Trial, smallest_cosine
from embedshare.errors import UnsupportedModel
from embedshare.providers.local import Local
from tests.engine.small_models import SIZES, modules, pooled, saved, tokenizer, trunk
from tests.engine.test_loading import TEXTS, settings_for
from tests.engine.test_loading import smallest_cosine as cosine_of

computes_in_bfloat16 = pytest.mark.skipif(
    "BF16" not in openvino.cpu_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU has no bfloat16",
)


class Known(dict[str, Trial]):
    """Trials kept in memory."""

    find = dict.get
    choice: str | None = None

    def keep(self, dtype: str, trial: Trial) -> None:
        self[dtype] = trial

    def chosen(self) -> str | None:
        return self.choice

    def choose(self, dtype: str) -> None:
        self.choice = self.choice or dtype


def fitting(wanted: str, known: Known) -> Any:
    def proof() -> KeptProof:
        raise AssertionError("nothing is tried that is known")

    return first_runs.fitting(lambda dtype: dtype, wanted, known, proof)  # type: ignore[arg-type, return-value]


@pytest.fixture
def said() -> Any:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{level} {message}", level="INFO")
    yield lines
    logger.remove(sink)


@pytest.fixture
def prefers_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make "auto" bfloat16 on this CPU, however busy it is now."""
    monkeypatch.setattr(precision, "faster_on_cpu", lambda *_: "bfloat16")


def test_the_smallest_cosine_counts_texts_that_have_a_vector() -> None:
    expected = np.array([[1, 0], [0, 0], [np.nan, 0], [3, 4]], np.float32)
    rows = np.array([[2, 0, 9], [1, 1, 9], [1, 1, 9], [4, 3, 9]], np.float32)
    assert smallest_cosine(rows, expected) == pytest.approx(24 / 25)
    assert smallest_cosine(rows[:3], expected[:3]) == pytest.approx(1.0)
    rows[0] = np.nan
    assert smallest_cosine(rows, expected) == -1.0


@pytest.mark.parametrize(
    ("wanted", "bfloat16", "float32", "taken", "says"),
    [
        ("bfloat16", 0.99995, None, "bfloat16", None),
        ("bfloat16", 0.9998, None, "bfloat16", "WARNING Computing in bfloat16 as EMBEDDING_DTYPE asks"),
        ("bfloat16", None, 1.0, "float32", "INFO Computing in float32 (bfloat16 ended the process"),
        ("float32", None, 1.0, "float32", None),
    ],
)
def test_a_precision_is_taken_by_what_is_known_of_it(
    wanted: str, bfloat16: float | None, float32: float | None, taken: str, says: str | None, said: list[str]
) -> None:
    known = Known(bfloat16=Trial(bfloat16), float32=Trial(float32))
    assert fitting(wanted, known) == taken
    assert [line.startswith(says) for line in said] == [True] if says else not said


def test_auto_falls_to_float32_where_bfloat16_is_not_near_enough(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(first_runs, "resolve_dtype", lambda dtype: "bfloat16")
    assert fitting("auto", Known(bfloat16=Trial(0.99988), float32=Trial(1.0))) == "float32"
    (line,) = said
    assert line.startswith(
        "INFO Computing in float32 (in bfloat16 the model agrees with sentence-transformers to 0.99988"
    )


def test_auto_means_what_it_meant_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of two processes differ where both precisions take about as long."""
    known = Known(bfloat16=Trial(1.0), float32=Trial(1.0))
    for measured in ("float32", "bfloat16"):
        monkeypatch.setattr(first_runs, "resolve_dtype", lambda dtype, measured=measured: measured)
        assert fitting("auto", known) == "float32"
        assert first_runs.untried("auto", known) == ""
    monkeypatch.setattr(first_runs, "resolve_dtype", lambda dtype: dtype)
    assert fitting("bfloat16", known) == "bfloat16"  # which the operator names


def test_a_graph_that_ended_every_process_that_ran_it_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="float32 ended the process"):
        fitting("bfloat16", Known(bfloat16=Trial(None), float32=Trial(None)))


def test_trials_are_kept_for_each_kind_of_cpu(tmp_path: Path) -> None:
    here, elsewhere = KeptTrials(tmp_path, "here"), KeptTrials(tmp_path, "elsewhere")
    here.keep("bfloat16", Trial(0.5))
    assert here.find("bfloat16") == Trial(0.5)
    assert here.find("float32") is None
    assert elsewhere.find("bfloat16") is None
    assert openvino.cpu_kind() == openvino.cpu_kind()
    (tmp_path / "here-bfloat16.json").write_text("no trial")
    assert here.find("bfloat16") is None
    assert here.chosen() is None
    here.choose("float32")
    here.choose("bfloat16")
    assert (here.chosen(), elsewhere.chosen()) == ("float32", None)


def head_over_minilm(folder: Path, head: str) -> Path:
    """Write all-MiniLM-L6-v2 with a different head."""
    import torch

    first = modules().Transformer(str(weights.find("all-MiniLM-L6-v2")), max_seq_length=256)
    pooling = modules().Pooling(384)
    torch.manual_seed(7)
    if head == "Dense":
        dense = modules().Dense(384, 384, activation_function=torch.nn.GELU())
        return saved(folder, [first, pooling, dense])
    words = list(tokenizer().get_vocab())
    gains = dict(zip(words, np.random.default_rng(7).gamma(0.5, 2.0, len(words)).tolist(), strict=True))
    return saved(folder, [first, modules().WordWeights(words, gains), pooling])


@computes_in_bfloat16
@pytest.mark.parametrize("head", ["Dense", pytest.param("WordWeights", marks=pytest.mark.long)])
def test_a_head_over_minilm_is_near_enough_in_auto(tmp_path: Path, head: str, prefers_bfloat16: None) -> None:
    from sentence_transformers import SentenceTransformer

    folder = head_over_minilm(tmp_path, head)
    texts = ["", *TEXTS]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    engine = Local.load(settings_for(tmp_path, str(folder), dtype="auto"), "cpu")
    assert cosine_of(engine.embed(EmbedRequest(texts, "")).rows, expected) >= LEAST_COSINE
    if head == "Dense":  # its graph sums the transformer in float32, as without a head
        assert (engine.description.runtime, engine.description.dtype) == ("openvino", "bfloat16")
        engine._runtime.settle()
        alone = np.concatenate([engine.embed(EmbedRequest([text], "")).rows for text in texts])
        assert cosine_of(alone, expected) >= LEAST_COSINE


def sensitive_model(folder: Path) -> Path:
    """Write a model whose vectors bfloat16 changes too much."""
    config = {
        "vocab_size": 30522, "pad_token_id": 0, "max_position_embeddings": 260, **SIZES,
        "initializer_range": 1.0,
    }  # fmt: skip
    return saved(folder, pooled(trunk(folder, "Bert", config, max_seq_length=64)))


@computes_in_bfloat16
def test_a_model_that_needs_float32_has_it_and_is_tried_once(
    tmp_path: Path, prefers_bfloat16: None, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = sensitive_model(tmp_path)
    settings = settings_for(tmp_path, str(folder), dtype="auto")
    assert Local.load(settings, "cpu").description.dtype == "float32"
    (kept,) = (tmp_path / "cache" / "graphs").glob(f"*/{openvino.cpu_kind()}-bfloat16.json")
    assert json.loads(kept.read_text())["cosine"] < LEAST_COSINE
    monkeypatch.setattr(first_runs, "first_runs", None)  # no first run is retried
    engine = Local.load(settings, "cpu")
    assert (engine.description.runtime, engine.description.dtype) == ("openvino", "float32")
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(engine.embed(EmbedRequest(TEXTS, "")).rows, expected, atol=1e-4)
    named = settings.with_values({"EMBEDDING_DTYPE": "bfloat16"})
    assert Local.load(named, "cpu").description.dtype == "bfloat16"
    assert sum("WARNING Computing in bfloat16 as EMBEDDING_DTYPE asks" in line for line in said) == 1


@computes_in_bfloat16
def test_torch_takes_the_precision_that_is_near_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    from embedshare.engine.runtimes import torch

    monkeypatch.setattr(torch, "resolve_dtype", lambda dtype, device: "bfloat16")
    settings = settings_for(tmp_path, str(sensitive_model(tmp_path)), runtime="torch", dtype="auto")
    assert Local.load(settings, "cpu").description.dtype == "float32"
    named = settings.with_values({"EMBEDDING_DTYPE": "bfloat16"})
    assert Local.load(named, "cpu").description.dtype == "bfloat16"
    assert [line.partition(" (")[0] for line in said] == [
        "INFO Not computing in bfloat16",
        "WARNING Computing in bfloat16 as EMBEDDING_DTYPE asks",
    ]


def test_why_openvino_does_not_run_a_model_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    from embedshare.engine.runtimes import conversion

    def convert(*_: object) -> None:
        raise UnsupportedModel("it does not convert")

    monkeypatch.setattr(conversion, "convert", convert)
    settings = settings_for(tmp_path, str(sensitive_model(tmp_path)))
    assert Local.load(settings, "cpu").description.runtime == "torch"
    monkeypatch.setattr(conversion, "convert", None)  # no conversion is retried
    assert Local.load(settings, "cpu").description.runtime == "torch"
    assert f"INFO Not running {settings.model.name} with OpenVINO (it does not convert)\n" in said
    with pytest.raises(UnsupportedModel, match="it does not convert"):
        Local.load(settings.with_values({"EMBEDDING_RUNTIME": "openvino"}), "cpu")
