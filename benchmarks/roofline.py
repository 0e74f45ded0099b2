"""The rate of matrix products that this machine reaches: the limit for a model's linear layers."""

from __future__ import annotations

import time
from typing import Any

DTYPES = ("float32", "bfloat16")
#: Tokens in one product, as in a large batch.
ROWS = 2048
MEASURED_S = 0.5
WARM_UP_PRODUCTS = 5


def flop_per_token(config: Any) -> int:
    """Return the floating-point operations of a BERT-like transformer's linear layers: four projections of
    attention and the two layers after it. Attention itself, which grows with a text's length, is left out."""
    hidden, wide = config.hidden_size, config.intermediate_size
    multiply_adds = config.num_hidden_layers * (4 * hidden**2 + 2 * hidden * wide)
    return int(2 * multiply_adds)


def flop_per_s(dtype: str) -> float:
    """Return the rate of torch's products, 2048 x 1536 by 1536 x 384, in `dtype`, with torch's threads."""
    import torch

    wide, hidden = 1536, 384
    layer = torch.nn.Linear(wide, hidden).to(getattr(torch, dtype))
    rows = torch.randn(ROWS, wide, dtype=getattr(torch, dtype))
    with torch.inference_mode():
        for _ in range(WARM_UP_PRODUCTS):
            layer(rows)
        done, began = 0, time.perf_counter()
        while (taken_s := time.perf_counter() - began) < MEASURED_S:
            layer(rows)
            done += 1
    return done * 2 * ROWS * wide * hidden / taken_s
