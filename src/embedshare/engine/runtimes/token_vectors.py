"""ColBERT as a module from packed token ids to a vector of each token."""

from __future__ import annotations

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from embedshare.engine.runtimes.heads import TokensHead
from embedshare.engine.runtimes.masks import Mask, whole_text
from embedshare.engine.task_tokens import Expansion
from embedshare.errors import UnsupportedModel


class TokenVectors(torch.nn.Module):  # type: ignore[misc]  # torch is not analysed
    """Packed rows to float32 vectors (rows, width, dimension) of their tokens."""

    def __init__(self, model: MultiVectorEncoder, mask: Mask = whole_text) -> None:
        super().__init__()
        first, *rest = list(model)
        self.transformer = first.auto_model
        self.rest = torch.nn.ModuleList(module for module in rest if not isinstance(module, MultiVectorMask))
        self.heads = len(self.rest)
        self.hides = bool(first.query_expansion) and not first.query_expansion["attend"]
        self.mask = mask

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, segments: torch.Tensor
    ) -> torch.Tensor:
        if self.hides:  # see TokensHead.inputs
            sees = torch.where(segments < -1, -2 - segments, segments)
            segments = torch.stack([sees, segments])
        hidden = self.mask(self.transformer, input_ids, position_ids, segments)
        features = {"token_embeddings": hidden.float()}
        for module in self.rest:
            features = module(features)
        return features["token_embeddings"]


def head_of(model: MultiVectorEncoder) -> TokensHead:
    """The head for a model of a transformer and layers over its tokens. Raises UnsupportedModel for one with
    other modules, such as a token pooling."""
    first, *rest = list(model)
    if not isinstance(first, Transformer):
        raise UnsupportedModel(f"the model begins with {type(first).__name__}, not with a transformer")
    masks = []
    for module in rest:
        if isinstance(module, MultiVectorMask):
            masks.append(module)
        elif not isinstance(module, Dense | Normalize) or module.module_input_name != "token_embeddings":
            raise UnsupportedModel(f"{type(module).__name__} follows the transformer")
    if len(masks) != 1:
        raise UnsupportedModel(f"the model has {len(masks)} MultiVectorMasks")
    skipped = masks[0]._skiplist_ids
    ids = [] if skipped is None else skipped.tolist()
    return TokensHead({task: ids for task in masks[0].skiplist_tasks if ids}, masks[0].keep_only_token_ids)


def expansion_of(model: MultiVectorEncoder) -> Expansion | None:
    """The tokens that fill a short query up; None without any. Raises UnsupportedModel."""
    expansion, tokenizer = model[0].query_expansion, model.tokenizer
    if expansion is None:
        return None
    if tokenizer.padding_side != "right":
        raise UnsupportedModel("queries are filled up on the left")
    token = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.eos_token_id
    if expansion["token"] is not None:
        token = tokenizer.convert_tokens_to_ids(expansion["token"])
    if token is None:
        raise UnsupportedModel("queries are filled up with padding")
    return Expansion(token, expansion["length"], expansion["attend"])
