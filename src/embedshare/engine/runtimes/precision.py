"""What "auto" means as precision on a CPU: measured, as not every CPU that computes in bfloat16 gains by it.

OpenVINO with all-MiniLM-L6-v2, in bulk: on a Zen 5 bfloat16 has 1.6 times float32's rate (27,600 and 17,400
tokens/s); on an Emerald Rapids without AMX, which clouds often hide, 0.65 times (5,000 and 7,700).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from loguru import logger

#: The product that is measured: rows of a batch, and the sizes of the largest layer of a small model.
ROWS, INPUTS, OUTPUTS = 256, 384, 1536
#: How often each of two is run. The least of these is compared: others may be using the cores.
_TURNS = 12
#: Half precision is worth its rounding where it takes at most this share of float32's time.
_WORTH = 0.9


class Products(NamedTuple):
    """One product of matrices in each precision, ready to be computed."""

    float32: Callable[[], object]
    bfloat16: Callable[[], object]


@cache
def faster_on_cpu(prepare: Callable[[], Products], clock: Callable[[], float] = time.perf_counter) -> str:
    """The precision, "float32" or "bfloat16", in which this CPU computes what `prepare` gives.

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
        "computes in {}: a product takes {:.2f} ms in float32, {:.2f} ms in bfloat16",
        chosen,
        float32_s * 1e3,
        bfloat16_s * 1e3,
    )
    return chosen
