"""A SentenceTransformer as one module from packed token ids to vectors: transformer, pooling, dense,
normalise.

Every runtime runs this module, or what it was converted to. Whether a model's attention can be packed is not
guessed from its name: each layout is tried against SentenceTransformer's own forward on a few texts, and the
first that agrees is used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from loguru import logger
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.utils import logging as transformers_logging

from embedshare.engine.facts import ModelFacts
from embedshare.engine.runtimes.packing import Layout, pack
from embedshare.errors import UnsupportedModel, WeightsCorrupted

#: The smallest cosine between two forms of one model in float32.
_SAME = 0.99999
_MASKED = -30000.0  # as good as minus infinity, and finite in float16 too


class Embedder(torch.nn.Module):  # type: ignore[misc]  # torch is not analysed: minutes and gigabytes
    """Packed batches (see `packing.Packed`) to float32 vectors (texts, dimension)."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        first, *rest = list(model)
        self.transformer = first.auto_model
        self.rest = torch.nn.ModuleList(rest)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        segments: torch.Tensor,
        places: torch.Tensor,
    ) -> torch.Tensor:
        same_text = (segments[:, :, None] == segments[:, None, :])[:, None]
        bias = torch.where(same_text, 0.0, _MASKED).to(self.transformer.dtype)
        hidden = self.transformer(input_ids=input_ids, attention_mask=bias, position_ids=position_ids)[0]
        tokens = hidden.reshape(-1, hidden.shape[-1])[places.clamp(min=0)]
        # Pooling adds up many values: it stays in float32 whatever the transformer computes in.
        features = {"token_embeddings": tokens.float(), "attention_mask": (places >= 0).long()}
        for module in self.rest:
            features = module(features)
        return features["sentence_embedding"]


def load(folder: Path, device: str, trust_remote_code: bool) -> SentenceTransformer:
    """The model in `folder`, in float32, ready to compute.

    Raises UnsupportedModel where it cannot be shared.
    """
    transformers_logging.disable_progress_bar()  # one line an event: the log says when the model is ready
    transformers_logging.set_verbosity_error()
    try:
        model = SentenceTransformer(
            str(folder),
            device=device,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            model_kwargs={"torch_dtype": "float32"},
        ).eval()
    except SafetensorError as error:
        raise WeightsCorrupted(f"the weights in {folder} cannot be read: {error}") from None
    except (ValueError, KeyError, OSError, ImportError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise UnsupportedModel(
                f"the model in {folder} needs Python code of its own, which is run only for the models that "
                "EMBEDDING_TRUST_REMOTE_CODE names: add its name there if you trust it, and restart"
            ) from None
        raise UnsupportedModel(f"the model in {folder} does not load: {error}") from error
    if not isinstance(model[0], Transformer) or model.tokenizer is None:
        raise UnsupportedModel(
            f"the model in {folder} begins with {type(model[0]).__name__}, not a text transformer"
        )
    if any(isinstance(module, Pooling) and not module.include_prompt for module in model):
        raise UnsupportedModel(
            f"the model in {folder} leaves prompts out of its pooling, which is not served"
        )
    return model


def facts_of(model: SentenceTransformer) -> ModelFacts:
    """What the model says of itself; its layout is not known yet.

    Raises UnsupportedModel where it says too little.
    """
    max_seq_length, dimension = model.max_seq_length, model.get_embedding_dimension()
    if max_seq_length is None or dimension is None:
        raise UnsupportedModel("the model does not say its longest sequence or its dimensions")
    return ModelFacts(
        dimension=dimension,
        max_seq_length=max_seq_length,
        lowercase=bool(getattr(model[0], "do_lower_case", False)),
        prompts={name: prompt or "" for name, prompt in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        tokenizer_inputs=list(model.tokenizer.model_input_names),
        padding_token_id=getattr(model.tokenizer, "pad_token_id", None) or 0,
        layout=None,
    )


def find_layout(model: SentenceTransformer, embedder: Embedder, sample: list[list[int]]) -> Layout | None:
    """The layout in which `embedder` agrees with the model's own forward, packed if possible; None if none
    does."""
    expected = plain_forward(model, sample)
    padding_id = getattr(model[0].auto_model.config, "pad_token_id", None) or 0
    for one_text_a_row in (False, True):
        for first_position in dict.fromkeys((0, padding_id + 1)):
            layout = Layout(first_position, one_text_a_row)
            try:
                with torch.inference_mode():
                    found = embedder(
                        *(torch.from_numpy(array).to(model.device) for array in pack(sample, layout))
                    )
            except (TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:
                logger.debug("layout {} does not run: {}", layout, error)
                continue
            if smallest_cosine(found.cpu().numpy(), expected) >= _SAME:
                return layout
    return None


def plain_forward(model: SentenceTransformer, sequences: list[list[int]]) -> np.ndarray:
    """The model's own forward over padded token ids: float32 (n, dimension)."""
    padding_id = getattr(model.tokenizer, "pad_token_id", None) or 0
    width = max(map(len, sequences))
    input_ids = np.full((len(sequences), width), padding_id, np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    features = {
        "input_ids": torch.from_numpy(input_ids).to(model.device),
        "attention_mask": torch.from_numpy(attention_mask).to(model.device),
    }
    with torch.inference_mode():
        vectors: np.ndarray = model(features)["sentence_embedding"].float().cpu().numpy()
    return vectors


def smallest_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """The least cosine between rows of the same number; -1 where a value is not finite."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((found * expected).sum(1) / np.maximum(norms, 1e-12)).min())
    return cosine if np.isfinite(cosine) else -1.0
