"""SPLADE as a module from packed token ids to logits of the vocabulary, pooled over blocks of tokens."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling

from embedshare.engine.runtimes.given_states import GivenStates, States, with_parts
from embedshare.engine.runtimes.heads import SparseHead
from embedshare.engine.runtimes.masks import Mask, whole_text
from embedshare.errors import UnsupportedModel

#: Words whose logits are computed at once: those of 1,024 tokens stay in a processor's cache for pooling, and
#: need 16 MB, not 125.
_WORDS = 4096


class Splade(torch.nn.Module):  # type: ignore[misc]  # torch is not analysed
    """Packed rows, and blocks of their tokens (blocks, BLOCK), to float32 (blocks, vocabulary)."""

    def __init__(self, model: SparseEncoder, mask: Mask = whole_text) -> None:
        super().__init__()
        language_model = model[0].auto_model
        self.transformer = language_model.base_model
        self.words = language_model.get_output_embeddings()
        self.before_words = _without(language_model, self.transformer, self.words)
        self.head = head_of(model)
        self.heads = 0
        self.mask = mask

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        segments: torch.Tensor,
        blocks: torch.Tensor,
    ) -> torch.Tensor:
        hidden = self.mask(self.transformer, input_ids, position_ids, segments)
        tokens = hidden.reshape(-1, hidden.shape[-1])[blocks.clamp(min=0)]
        tokens = self.before_words(tokens.float()).to(self.words.weight.dtype)
        weights = self.words.weight.split(_WORDS)
        biases = [None] * len(weights) if self.words.bias is None else self.words.bias.split(_WORDS)
        pooled = []
        for weight, bias in zip(weights, biases, strict=True):
            logits = torch.nn.functional.linear(tokens, weight).float()
            pooled.append(self._pooled(logits if bias is None else logits + bias, blocks))
        return torch.cat(pooled, dim=1)

    def _pooled(self, logits: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        if self.head.pooling == "max":
            return logits.amax(1)
        weights = logits.relu()
        for _ in range(self.head.logs):
            weights = weights.log1p()
        return (weights * (blocks >= 0)[:, :, None]).sum(1)


def head_of(model: SparseEncoder) -> SparseHead:
    """The head for a model of a transformer and SpladePooling. Raises UnsupportedModel for another one."""
    names = [type(module).__name__ for module in model]
    if len(names) != 2 or not isinstance(model[0], Transformer) or not isinstance(model[1], SpladePooling):
        raise UnsupportedModel(f"the sparse model is made of {', '.join(names)}")
    logs = 2 if model[1].activation_function == "log1p_relu" else 1
    return SparseHead(model[1].pooling_strategy, logs)


class _BeforeWords(torch.nn.Module):  # type: ignore[misc]
    """The layers of a language model between its transformer and its words."""

    def __init__(self, language_model: Any, given: GivenStates) -> None:
        super().__init__()
        self.language_model = language_model
        self.given = given

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.given.states = States((hidden,))
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        states: torch.Tensor = self.language_model(input_ids=ids)[0]
        return states


def _without(language_model: Any, transformer: Any, words: Any) -> _BeforeWords:
    """The language model without these two parts, over the same weights. Raises UnsupportedModel."""
    if not isinstance(words, torch.nn.Linear) or transformer is language_model:
        raise UnsupportedModel(f"{type(language_model).__name__} does not end with one layer of words")
    given = GivenStates()
    parts = {transformer: given, words: torch.nn.Identity()}
    return _BeforeWords(with_parts(language_model, parts), given)
