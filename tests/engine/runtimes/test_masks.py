"""Which tokens attend to which in a packed row, from the proof and the model's causality and windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedshare.engine.runtimes import embedder as embedders
from embedshare.engine.runtimes import masks
from embedshare.engine.runtimes.conversion import convert
from embedshare.engine.runtimes.embedder import Embedder
from embedshare.engine.runtimes.packing import Layout, pack
from embedshare.engine.runtimes.proof import prove
from embedshare.engine.tokens import TextTokenizer
from embedshare.errors import UnsupportedModel
from tests.engine.small_models import DECODER, MODERN, MORE, SIZES, pooled, saved, tokenizer, trunk

DEBERTA = MORE["DebertaV2, mean"][0] | {
    "relative_attention": True, "position_buckets": 32, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
GEMMA = DECODER | {"sliding_window": 32}
PACKED, ONE_EACH = False, True
FORMS: dict[str, tuple[str, dict[str, Any], masks.Mask, bool]] = {
    "MPNet": ("MPNet", {"vocab_size": 30522, **SIZES}, masks.whole_text, PACKED),
    "Qwen3": ("Qwen3", DECODER, masks.own, PACKED),
    "Mistral, a window": ("Mistral", DECODER | {"sliding_window": 32}, masks.own, PACKED),
    "Mistral, a window beyond the proof": ("Mistral", DECODER | {"sliding_window": 4096}, masks.own, PACKED),
    "ModernBERT, a window beyond the proof": (
        "ModernBert", MODERN | {"local_attention": 6000, "max_position_embeddings": 8192}, masks.own, PACKED,
    ),
    "ModernBERT": ("ModernBert", MODERN | {"local_attention": 64}, masks.own, PACKED),
    "Gemma 3": ("Gemma3Text", GEMMA, masks.own, PACKED),
    "Gemma 3, both ways": (
        "Gemma3Text", GEMMA | {"use_bidirectional_attention": True}, masks.own, PACKED,
    ),
    "DeBERTa": ("DebertaV2", DEBERTA, masks.encoder_alone, PACKED),
    "DeBERTa, a convolution": ("DebertaV2", DEBERTA | {"conv_kernel_size": 3}, masks.own, ONE_EACH),
    "XLNet": ("XLNet", MORE["XLNet, mean"][0], masks.permutations, PACKED),
    "Longformer": ("Longformer", MORE["Longformer, mean"][0], masks.own, ONE_EACH),
}  # fmt: skip


def model_of(folder: Path, family: str, config: dict[str, Any], longest: int = 512) -> Any:
    parts = pooled(trunk(folder, family, config, tokenizer(longest)))
    return embedders.load(saved(folder, parts), "cpu", trust_remote_code=False)


#: Models whose form another entry of FORMS has too; only EMBEDSHARE_LONG=1 tries them.
ALIKE = {
    "Mistral, a window beyond the proof", "ModernBERT, a window beyond the proof", "Gemma 3, both ways",
    "DeBERTa, a convolution", "Mistral, a window",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in ALIKE else ()) for name in FORMS]
)
def test_a_familys_mask_is_found(name: str, tmp_path: Path) -> None:
    family, config, mask, one_text_a_row = FORMS[name]
    model = model_of(tmp_path, family, config, 8192 if "beyond" in name else 512)
    texts = TextTokenizer(embedders.tokenizer_of(model))
    proof = prove(model)
    found = embedders.find_form(model, proof, [texts([text], prompt)[0] for text, prompt, _ in proof.samples])
    assert found is not None
    embedder, layout = found
    assert (embedder.mask, layout.one_text_a_row) == (mask, one_text_a_row)


@pytest.mark.parametrize("window", [8, 600])
def test_texts_in_one_row_have_the_vectors_that_each_has_alone(window: int, tmp_path: Path) -> None:
    model = model_of(tmp_path, "ModernBert", MODERN | {"local_attention": window})
    texts = [" ".join(map(str, range(start, start + 20))) for start in (0, 300, 600)]
    sequences = TextTokenizer(embedders.tokenizer_of(model))(texts)
    packed = pack(sequences, Layout())
    assert len(packed.input_ids) < len(texts)
    with torch.inference_mode():
        rows = Embedder(model, masks.own).eval()(*map(torch.from_numpy, packed)).numpy()
    np.testing.assert_allclose(rows, model.encode(texts), atol=1e-5)


def test_a_model_without_a_form_computes_as_it_was_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tmp_path, "Qwen3", DECODER)
    texts = ["one", "one model, many workers"]
    expected = model.encode(texts)
    proof = prove(model)
    monkeypatch.setattr(embedders, "_agrees", lambda embedder, *_: _touched(embedder))
    assert embedders.find_form(model, proof, []) is None
    assert model[0].auto_model.config._attn_implementation == "sdpa"
    np.testing.assert_array_equal(model.encode(texts), expected)


def _touched(embedder: Embedder) -> bool:
    """Run the embedder once, as the search does, and return that it is not accepted."""
    if embedder.mask is masks.own:
        with torch.inference_mode():
            embedder(*map(torch.from_numpy, pack([[5, 6], [7]], Layout())))
    return False


def test_a_graph_that_holds_for_some_lengths_alone_is_not_taken(tmp_path: Path) -> None:
    class Branching(Embedder):
        """A model whose code depends on a row's width, as some models' does."""

        def forward(self, input_ids: Any, *others: Any) -> Any:
            rows = super().forward(input_ids, *others)
            return rows if input_ids.shape[1] != 24 else -rows

    model = model_of(tmp_path, "Bert", {"vocab_size": 30522, "pad_token_id": 0, **SIZES}, 128)
    texts = TextTokenizer(embedders.tokenizer_of(model))
    proof = prove(model)
    sequences = [texts([text], prompt)[0] for text, prompt, _ in proof.samples]
    with pytest.raises(UnsupportedModel, match="24 tokens"):
        convert(Branching(model).eval(), Layout(), proof, sequences)
