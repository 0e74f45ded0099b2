"""A CrossEncoder as one module from packed token ids to scores: transformer, and the model's own head.

The head is the model's class for classification itself, whose transformer gives it the hidden states of the
packed rows, gathered by text. So any head works that sees no more than those.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from sentence_transformers import CrossEncoder

from embedshare.engine.runtimes.given_states import GivenStates, States, with_parts
from embedshare.engine.runtimes.masks import Mask, whole_text


class Classifier(torch.nn.Module):  # type: ignore[misc]  # torch is not analysed: minutes and gigabytes
    """Packed batches (see `packing.Packed`), and the types of their tokens if it reads any, to float32 scores
    (texts, labels).

    `mask`: tells the transformer which tokens see each other.
    """

    def __init__(self, model: CrossEncoder, mask: Mask = whole_text) -> None:
        super().__init__()
        first, *rest = list(model)
        whole = first.model
        self.transformer, self.pooler = _without_pooler(whole.base_model)
        self.head = None if whole.base_model is whole else _Head(whole, self.pooler)
        self.rest = torch.nn.ModuleList(rest)
        self.mask = mask
        self.output = first.module_output_name
        self.reads_last = self.output == "causal_logits"
        self.padding_id = whole.config.get_text_config().pad_token_id or 0
        after = [*self.rest.modules(), *(self.head.modules() if self.head is not None else ())]
        self.heads = sum(isinstance(layer, torch.nn.Linear) for layer in after)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        segments: torch.Tensor,
        places: torch.Tensor,
        token_types: torch.Tensor | None = None,
    ) -> torch.Tensor:
        types = {} if token_types is None else {"token_type_ids": token_types}
        hidden = self.mask(self.transformer, input_ids, position_ids, segments, **types)
        if self.reads_last:
            places = places.max(dim=1, keepdim=True).values
        found = places.clamp(min=0)
        present = (places >= 0).long()
        features = {
            "token_embeddings": hidden.reshape(-1, hidden.shape[-1])[found].float(),
            "attention_mask": present,
            "input_ids": torch.where(places >= 0, input_ids.reshape(-1)[found], self.padding_id),
        }
        if self.head is not None:
            features[self.output] = self.head(features)
        for module in self.rest:
            features = module(features)
        return features["scores"].float()


class _Head(torch.nn.Module):  # type: ignore[misc]
    """A model for classification without its transformer."""

    def __init__(self, whole: Any, pooler: torch.nn.Module | None) -> None:
        super().__init__()
        self.given = GivenStates()
        self.pooler = pooler
        self.whole = with_parts(whole, {whole.base_model: self.given})

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        tokens = features["token_embeddings"]
        pooled = None if self.pooler is None else self.pooler(tokens)
        self.given.states = States((tokens,) if pooled is None else (tokens, pooled))
        found = self.whole(input_ids=features["input_ids"], attention_mask=features["attention_mask"])
        logits: torch.Tensor = found.logits
        return logits


class _FirstToken(torch.nn.Module):  # type: ignore[misc]
    """The pooler of models that apply a plain layer to the first token."""

    def __init__(self, layer: torch.nn.Module, activation: torch.nn.Module) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.activation(self.layer(tokens[:, 0]))
        return pooled


def _without_pooler(transformer: Any) -> tuple[Any, torch.nn.Module | None]:
    """The transformer without its pooler, which would pool rows and not texts, and the pooler.

    Both share the weights of `transformer`.
    """
    pooler = getattr(transformer, "pooler", None)
    if not isinstance(pooler, torch.nn.Module):
        return transformer, None
    activation = getattr(transformer, "pooler_activation", None)
    if isinstance(pooler, torch.nn.Linear) and activation is not None:
        pooler = _FirstToken(pooler, activation)
    without = copy.copy(transformer)
    without._modules = {**transformer._modules, "pooler": None}
    return without, pooler
