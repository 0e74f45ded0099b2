"""Cross-encoders, sparse and multi-vector models in sentence-transformers itself.

Each family's class, its description of a model, and the call that a WholeRuntime makes of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from loguru import logger
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.util import batch_to_device

from embedshare.activations import ACTIVATIONS
from embedshare.engine.metadata import ModelMetadata
from embedshare.engine.runtimes.proof import tokenizer_in
from embedshare.engine.runtimes.whole import Compute
from embedshare.engine.text_outputs import TextOutputs, ragged
from embedshare.engine.tokens import LONGEST
from embedshare.identity import Family

#: The class of each family's models.
CLASSES: dict[Family, Any] = {
    "embedding": SentenceTransformer,
    "cross-encoder": CrossEncoder,
    "sparse": SparseEncoder,
    "multi-vector": MultiVectorEncoder,
}


def predict(model: CrossEncoder) -> Compute:
    """The logits of pairs, or of texts alone: float32 (n, labels)."""

    def compute(texts: list[Any], prompt: str, task: str) -> np.ndarray:
        # `predict` reads a list of single texts as one pair.
        features = batch_to_device(model.preprocess(texts, prompt=prompt), model.device)
        with torch.inference_mode():
            rows: np.ndarray = model(features)["scores"].float().cpu().numpy()
        return rows

    return compute


def sparse(model: SparseEncoder) -> Compute:
    """Weights of the vocabulary's tokens: TextOutputs (n,)."""

    def compute(texts: list[Any], prompt: str, task: str) -> np.ndarray:
        options = {"task": task} if task else {}
        rows = model.encode(
            texts,
            prompt=prompt,
            batch_size=len(texts),
            convert_to_sparse_tensor=False,
            save_to_cpu=True,
            show_progress_bar=False,
            **options,
        )
        return ragged([TextOutputs(sparse=_active(row)) for row in rows.float().numpy()])

    return compute


def multi_vector(model: MultiVectorEncoder) -> Compute:
    """Vectors of tokens: TextOutputs (n,)."""

    def compute(texts: list[Any], prompt: str, task: str) -> np.ndarray:
        rows = model.encode(
            texts,
            prompt=prompt,
            task=task or None,
            batch_size=len(texts),
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return ragged([TextOutputs(multi_vector=row.astype(np.float32)) for row in rows])

    return compute


COMPUTES: dict[Family, Any] = {"cross-encoder": predict, "sparse": sparse, "multi-vector": multi_vector}


def facts_of(model: Any, family: Family) -> ModelMetadata:
    """The model's own description, as of one of this family but embedding models; without a layout."""
    longest, tokenizer = model.max_seq_length, tokenizer_in(model)
    is_scored = family == "cross-encoder"
    return ModelMetadata(
        dimension=0,
        full_dimension=model.num_labels if is_scored else None,
        max_seq_length=LONGEST if longest is None else int(min(longest, LONGEST)),
        prompts={name: prompt or "" for name, prompt in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name="" if is_scored else model.similarity_fn_name,
        tokenizer_inputs=list(getattr(tokenizer, "model_input_names", ["input_ids"])),
        padding_token_id=getattr(tokenizer, "pad_token_id", None) or 0,
        layout=None,
        family=family,
        outputs=("scores",) if is_scored else (family,),
        labels=_labels(model) if is_scored else (),
        activation=_activation(model) if is_scored else None,
        vocabulary=_vocabulary(model) if family == "sparse" else None,
        token_dimension=model.get_embedding_dimension() if family == "multi-vector" else None,
        max_active_dims=model.max_active_dims if family == "sparse" else None,
    )


def _active(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    indices = np.flatnonzero(row)
    return indices.astype(np.int32), row[indices]


def _vocabulary(model: SparseEncoder) -> int:
    """The width of the model's vectors; its own description gives that of the transformer's."""
    return int(model.encode("model", convert_to_sparse_tensor=False, show_progress_bar=False).shape[-1])


def _labels(model: CrossEncoder) -> tuple[str, ...]:
    names = getattr(model.config, "id2label", None) or {}
    return tuple(
        str(names.get(at, f"LABEL_{at}")) if len(names) == model.num_labels else f"LABEL_{at}"
        for at in range(model.num_labels)
    )


def _activation(model: CrossEncoder) -> str | None:
    """The name of the model's own activation function; None for one that is not in `activations`."""
    name = type(model.activation_fn).__name__
    if name in ACTIVATIONS:
        return name
    logger.warning("Giving scores without the model's activation function ({} is not a known one)", name)
    return None
