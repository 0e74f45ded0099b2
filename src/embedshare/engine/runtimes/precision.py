"""Chooses the precision that "auto" means on a CPU, by measurement: not every CPU with bfloat16 gains by it.

OpenVINO with all-MiniLM-L6-v2, in bulk: bfloat16 has 1.6 times float32's rate on a Zen 5, and 0.65 times on
an Emerald Rapids without AMX, which clouds often hide (docs/decisions/006-precision-auto-is-measured.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from loguru import logger

#: The measured product: rows of a batch, and the sizes of the largest layer of a small model.
ROWS, INPUTS, OUTPUTS = 256, 384, 1536
#: Runs of each product. The fastest ones are compared, since other programs may use the cores.
_TURNS = 12
#: The largest share of float32's time at which half precision is worth its rounding.
_WORTH = 0.9


class Products(NamedTuple):
    """One matrix product in each precision, ready to compute."""

    float32: Callable[[], object]
    bfloat16: Callable[[], object]


@cache
def faster_on_cpu(prepare: Callable[[], Products], clock: Callable[[], float] = time.perf_counter) -> str:
    """The precision, "float32" or "bfloat16", in which this CPU computes the products of `prepare` faster.

    Takes about 0.1 s, once in a process for each way to compute.
    """
    products = prepare()
    least = [float("inf")] * len(products)
    for _ in range(_TURNS):
        for which, product in enumerate(products):
            began = clock()
            product()
            least[which] = min(least[which], clock() - began)
    float32_s, bfloat16_s = least
    chosen = "bfloat16" if bfloat16_s <= _WORTH * float32_s else "float32"
    logger.info(
        "Computing in {} (a product takes {:.2f} ms in float32, {:.2f} ms in bfloat16)",
        chosen,
        float32_s * 1e3,
        bfloat16_s * 1e3,
    )
    return chosen
