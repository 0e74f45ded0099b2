"""Small models of the kinds beside SentenceTransformer, with random weights that are the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine.small_models import SIZES, tokenizer

BERT = {"vocab_size": 30522, "pad_token_id": 0, "max_position_embeddings": 260, **SIZES}
PROMPTS = {"query": "query: ", "document": "passage: "}
#: Words of the vocabulary, about one in two hundred, have a bias with which a small random head gives them
#: a weight: a trained SPLADE model gives a text some hundred.
_ACTIVE_BIAS, _OTHER_BIAS = -1.0, -9.0


def _trunk(folder: Path, family: str, kind: str, config: dict[str, Any], words: Any = None) -> Path:
    import torch
    import transformers

    torch.manual_seed(7)
    made = getattr(transformers, f"{family}Config")(**config)
    model = getattr(transformers, f"{family}{kind}")(made).eval()
    if kind == "ForMaskedLM":
        with torch.no_grad():
            bias = torch.full((made.vocab_size,), _OTHER_BIAS)
            bias[:: made.vocab_size // 150] = _ACTIVE_BIAS
            model.get_output_embeddings().bias.copy_(bias)
    model.save_pretrained(folder / "trunk")
    (words or tokenizer()).save_pretrained(folder / "trunk")
    return folder / "trunk"


def cross_encoder(
    folder: Path,
    labels: int = 1,
    family: str = "Bert",
    config: dict[str, Any] | None = None,
    words: Any = None,
    kind: str = "ForSequenceClassification",
    **options: Any,
) -> Path:
    """A reranker, or a classifier of several labels, as `CrossEncoder` saves it."""
    from sentence_transformers import CrossEncoder

    trunk = _trunk(folder, family, kind, {**(config or BERT), "num_labels": labels}, words)
    CrossEncoder(str(trunk), device="cpu", **options).save_pretrained(str(folder / "model"))
    return folder / "model"


def sparse(folder: Path, **options: Any) -> Path:
    """A SPLADE model, as `SparseEncoder` saves it."""
    from sentence_transformers import SparseEncoder

    trunk = _trunk(folder, "Bert", "ForMaskedLM", BERT)
    SparseEncoder(str(trunk), device="cpu", **options).save_pretrained(str(folder / "model"))
    return folder / "model"


def multi_vector(folder: Path, **options: Any) -> Path:
    """A ColBERT-like model, as `MultiVectorEncoder` saves it."""
    import torch
    from sentence_transformers import MultiVectorEncoder

    trunk = _trunk(folder, "Bert", "Model", BERT)
    torch.manual_seed(7)  # of its projection
    MultiVectorEncoder(str(trunk), device="cpu", **options).save_pretrained(str(folder / "model"))
    return folder / "model"
