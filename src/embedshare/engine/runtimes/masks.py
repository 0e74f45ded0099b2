"""Attention masks for packed rows: each token sees only its own text's tokens, as far as the model allows.

A model's mask is not guessed from its name: each one is checked against the proof (see `embedder.find_form`).
All take `segments` (rows, width), the number of each token's text, and give the last hidden states (rows,
width, size). `types` holds `token_type_ids` for a model that reads them. Of a pair of segments (2, rows,
width) the first says which text a token sees, the second which text sees it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_MASKED = -30000.0  # as good as minus infinity, but finite in float16
#: The attention implementation, in transformers' register, whose masks keep texts apart.
_PACKED = "embedshare_packed"
#: The segments of the batch that this thread computes.
_segments: ContextVar[torch.Tensor | None] = ContextVar("segments", default=None)

Mask = Callable[..., torch.Tensor]


def whole_text(
    transformer: Any,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    segments: torch.Tensor,
    **types: torch.Tensor,
) -> torch.Tensor:
    """Each token sees its whole text, in all layers: BERT, T5 and the like."""
    bias = _bias(_same_text(segments)[:, None], transformer.dtype)
    hidden: torch.Tensor = transformer(
        input_ids=input_ids, attention_mask=bias, position_ids=position_ids, **types
    )[0]
    return hidden


def own(
    transformer: Any,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    segments: torch.Tensor,
    **types: torch.Tensor,
) -> torch.Tensor:
    """The model makes its own masks, causal ones and windows: Qwen3, ModernBERT, Gemma and the like.

    transformers makes them from functions of two columns. Functions of the difference alone hold in the
    middle of a row too. A model that makes none gets a mask of the real tokens.
    """
    if transformer.config._attn_implementation != _PACKED:
        transformer.set_attn_implementation(_PACKED)
    options = {"position_ids": position_ids, "use_cache": False}
    taken = _parameters(type(transformer).forward)
    before = _segments.set(segments)
    try:
        hidden: torch.Tensor = transformer(
            input_ids=input_ids,
            attention_mask=_present(segments),
            **{name: value for name, value in options.items() if name in taken},
            **types,
        )[0]
    finally:
        _segments.reset(before)
    return hidden


def encoder_alone(
    transformer: Any,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    segments: torch.Tensor,
    **types: torch.Tensor,
) -> torch.Tensor:
    """The encoder takes a mask of pairs of tokens, and the embeddings before it do not: DeBERTa."""
    embedded = transformer.embeddings(input_ids=input_ids, position_ids=position_ids, mask=_present(segments))
    hidden: torch.Tensor = transformer.encoder(
        embedded, _same_text(segments).long(), output_hidden_states=False
    )[0]
    return hidden


def permutations(
    transformer: Any,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    segments: torch.Tensor,
    **types: torch.Tensor,
) -> torch.Tensor:
    """The mask is one of permutations: XLNet."""
    hidden: torch.Tensor = transformer(
        input_ids=input_ids, perm_mask=(~_same_text(segments)).to(transformer.dtype), **types
    )[0]
    return hidden


#: All of them, the cheapest first.
MASKS: tuple[Mask, ...] = (whole_text, own, encoder_alone, permutations)


@cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def _same_text(segments: torch.Tensor) -> torch.Tensor:
    sees, seen = segments if segments.dim() == 3 else (segments, segments)
    return sees[:, :, None] == seen[:, None, :]


def _present(segments: torch.Tensor) -> torch.Tensor:
    return ((segments[0] if segments.dim() == 3 else segments) >= 0).long()


def _bias(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.where(seen, 0.0, _MASKED).to(dtype)


def _packed_mask(mask_function: Callable[..., torch.Tensor], **options: Any) -> torch.Tensor | None:
    """See transformers' `sdpa_mask`; this is its form for packed rows."""
    segments = _segments.get()
    if segments is None:
        mask: torch.Tensor | None = sdpa_mask(mask_function=mask_function, **options)
        return mask
    columns = torch.arange(segments.shape[-1], device=segments.device)
    first = torch.zeros((), dtype=torch.long, device=segments.device)
    seen = mask_function(first, first, columns[:, None], columns[None, :])
    return _bias((_same_text(segments) & seen)[:, None], options["dtype"])


AttentionInterface.register(_PACKED, sdpa_attention_forward)
AttentionMaskInterface.register(_PACKED, _packed_mask)
