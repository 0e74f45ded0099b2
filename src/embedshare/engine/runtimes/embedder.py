"""A SentenceTransformer as one module from packed token ids to vectors: transformer, pooling, dense,
normalise.

The fast runtimes run this module, or what it was converted to. Whether a model's attention can be packed is
not guessed from its name: each layout is held against the proof (see `proof`), and the first that agrees is
used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from loguru import logger
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers.utils import logging as transformers_logging

from embedshare.engine.facts import ModelFacts
from embedshare.engine.runtimes.packing import Layout, pack
from embedshare.engine.runtimes.proof import Proof, in_batches, set_longest, shows_windows, tokenizer_in
from embedshare.engine.tokens import LONGEST, TextTokenizer, with_truncation
from embedshare.errors import UnsupportedModel, WeightsCorrupted

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
        )
    except SafetensorError as error:
        raise WeightsCorrupted(f"the weights in {folder} cannot be read: {error}") from None
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, OSError, ImportError, AttributeError, TypeError, RuntimeError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise UnsupportedModel(
                f"the model in {folder} needs Python code of its own, which is run only for the models that "
                "EMBEDDING_TRUST_REMOTE_CODE names: add its name there if you trust it, and restart"
            ) from None
        raise UnsupportedModel(f"the model in {folder} does not load: {error}") from error
    model.float().eval()
    set_longest(model)
    return model


def tokenizer_of(model: SentenceTransformer) -> str:
    """The text of the tokenizer that sentence-transformers uses, cutting where the model does.

    Raises UnsupportedModel for a model that is not a text transformer with a fast tokenizer.
    """
    if not isinstance(model[0], Transformer):
        raise UnsupportedModel(f"the model begins with {type(model[0]).__name__}, not with a transformer")
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModel(f"the model's {type(tokenizer).__name__} is not a fast tokenizer")
    try:
        return with_truncation(
            tokenizer.backend_tokenizer.to_str(), model.max_seq_length, tokenizer.truncation_side
        )
    except Exception as error:  # parts of a tokenizer that are written in Python have no text
        raise UnsupportedModel(f"the model's tokenizer has no form without Python: {error}") from None


def check_cut(model: SentenceTransformer, tokenizer: TextTokenizer) -> None:
    """Raise UnsupportedModel where a text that is too long is not cut as sentence-transformers cuts it."""
    if tokenizer.max_seq_length >= LONGEST:
        return
    text = " ".join(map(str, range(tokenizer.max_seq_length + 64)))
    if model.preprocess([text])["input_ids"][0].tolist() != tokenizer([text])[0]:
        raise UnsupportedModel("the model cuts long texts in a way of its own")


def facts_of(model: SentenceTransformer, proof: Proof) -> ModelFacts:
    """What the model says of itself; its layout is not known yet."""
    longest, tokenizer = model.max_seq_length, tokenizer_in(model)
    return ModelFacts(
        dimension=proof.expected.shape[1],
        full_dimension=proof.full_dimension,
        max_seq_length=LONGEST if longest is None else int(min(longest, LONGEST)),
        prompts={name: prompt or "" for name, prompt in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        tokenizer_inputs=list(getattr(tokenizer, "model_input_names", ["input_ids"])),
        padding_token_id=getattr(tokenizer, "pad_token_id", None) or 0,
        layout=None,
    )


def find_layout(
    model: SentenceTransformer, embedder: Embedder, proof: Proof, sequences: list[list[int]]
) -> Layout | None:
    """The layout in which `embedder` agrees with the proof, packed if possible; None if none does.

    `sequences`: the token ids of the proof's samples.
    """
    if not shows_windows(model):
        return None
    padding_id = getattr(model[0].auto_model.config, "pad_token_id", None) or 0
    for one_text_a_row in (False, True):
        for first_position in dict.fromkeys((0, padding_id + 1)):
            layout = Layout(first_position, one_text_a_row)

            def run(batch: list[list[int]], layout: Layout = layout) -> np.ndarray:
                arrays = [torch.from_numpy(array).to(model.device) for array in pack(batch, layout)]
                with torch.inference_mode():
                    rows: np.ndarray = embedder(*arrays).float().cpu().numpy()
                return rows

            try:
                proof.check(in_batches(sequences, run), "packed batches")
            except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
                logger.debug("layout {} does not run: {}", layout, error)
                continue
            except UnsupportedModel as error:
                logger.debug("layout {} is not taken: {}", layout, error)
                continue
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
