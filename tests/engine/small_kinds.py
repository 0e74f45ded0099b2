"""Small models of the kinds beside SentenceTransformer, with random weights that are the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine import small_models
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


def sparse(
    folder: Path,
    family: str = "Bert",
    config: dict[str, Any] | None = None,
    pooling: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A SPLADE model, as `SparseEncoder` saves it; `pooling`: its SpladePooling."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    trunk = _trunk(folder, family, "ForMaskedLM", config or BERT)
    modules = [Transformer(str(trunk), transformer_task="fill-mask"), SpladePooling(**pooling or {})]
    SparseEncoder(modules=modules, device="cpu", **options).save_pretrained(str(folder / "model"))
    return folder / "model"


def multi_vector(
    folder: Path,
    family: str = "Bert",
    config: dict[str, Any] | None = None,
    first: dict[str, Any] | None = None,
    mask: dict[str, Any] | None = None,
    dimension: int = 24,
    **options: Any,
) -> Path:
    """A ColBERT-like model, as `MultiVectorEncoder` saves it; `first`: attributes of its Transformer, `mask`:
    its MultiVectorMask, `dimension`: values of a token's vector."""
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    transformer = Transformer(str(_trunk(folder, family, "Model", config or BERT)))
    for name, value in (first or {}).items():
        setattr(transformer, name, value)
    torch.manual_seed(7)
    tokens = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    projection = Dense(
        transformer.get_embedding_dimension(), dimension, bias=False, activation_function=None, **tokens
    )
    modules = [transformer, projection, MultiVectorMask(**mask or {}), Normalize("token_embeddings")]
    MultiVectorEncoder(modules=modules, device="cpu", **options).save_pretrained(str(folder / "model"))
    return folder / "model"


def several(folder: Path) -> Path:
    """A model of three outputs, in the files of BGE-M3."""
    import torch

    trunk = small_models.trunk(folder, "XLMRoberta", BERT)
    parts = [*small_models.pooled(trunk, "cls"), small_models.modules().Normalize()]
    made = small_models.saved(folder, parts)
    torch.manual_seed(8)
    size = SIZES["hidden_size"]
    for name, outputs in (("sparse_linear", 1), ("colbert_linear", size)):
        torch.save(torch.nn.Linear(size, outputs).state_dict(), made / f"{name}.pt")
    return made
