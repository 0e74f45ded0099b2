"""Texts as requests that a remote service takes, and a request's tokens as those of its texts. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from embedshare.calls import Inputs


def sizes_of(inputs: Inputs) -> list[int]:
    """The bytes of each text, which are at least its tokens; of token ids their number."""
    return [len(one.encode("utf-8", "surrogatepass")) if isinstance(one, str) else len(one) for one in inputs]


def split(sizes: Sequence[int], most: int, most_size: float) -> list[slice]:
    """Runs of at most `most` texts and a size of at most `most_size` together; a larger text goes alone."""
    runs: list[slice] = []
    start = held = 0
    for number, size in enumerate(sizes):
        if number > start and (number - start == most or held + size > most_size):
            runs.append(slice(start, number))
            start, held = number, 0
        held += size
    if len(sizes) > start:
        runs.append(slice(start, len(sizes)))
    return runs


def shared_out(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` tokens in shares by size, as services tell a request's tokens only; their sum is `total`."""
    whole = sum(sizes)
    if not whole:
        return shared_out(total, [1] * len(sizes)) if sizes else []
    bounds, held = [0], 0
    for size in sizes:
        held += size
        bounds.append(total * held // whole)
    return [after - before for before, after in itertools.pairwise(bounds)]
