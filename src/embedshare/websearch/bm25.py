"""Selects the passages of long pages to embed: the beginnings, and those with the query's words."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence

#: The most passages that one search embeds: a fraction of a second of a CPU.
MAX_PASSAGES = 96
#: A page's first passages, which state its topic, are always selected.
LEADING = 4

_WORD = re.compile(r"\w+")
#: BM25's usual saturation and weight of length.
_K1, _B = 1.2, 0.75


def select(pages: Sequence[Sequence[str]], query: str, most: int = MAX_PASSAGES) -> list[list[int]]:
    """The positions, in order, of each page's passages to embed; all pages get an equal share."""
    if not pages:
        return []
    share = max(1, most // len(pages))
    scores = _scores([passage for page in pages for passage in page], query)
    chosen, start = [], 0
    for page in pages:
        own = scores[start : start + len(page)]
        start += len(page)
        leading = min(LEADING, share)
        rest = sorted(range(leading, len(page)), key=lambda at: (-own[at], at))
        chosen.append(sorted([*range(min(leading, len(page))), *rest[: share - leading]]))
    return chosen


def words(text: str) -> list[str]:
    """The words of a text in lower case, without the commonest endings of plurals and verbs."""
    return [_stem(word) for word in _WORD.findall(text.lower())]


@functools.lru_cache(1 << 16)
def _stem(word: str) -> str:
    for ending in ("ings", "ing", "ies", "es", "ed", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _scores(passages: list[str], query: str) -> list[float]:
    """Each passage's BM25 of the query, among these passages."""
    asked = set(words(query))
    counts = [Counter(word for word in words(passage) if word in asked) for passage in passages]
    held_by = Counter(word for count in counts for word in count)
    mean = sum(map(len, passages)) / max(1, len(passages)) or 1.0
    rarity = {
        word: math.log(1 + (len(passages) - held + 0.5) / (held + 0.5)) for word, held in held_by.items()
    }
    scores = []
    for passage, count in zip(passages, counts, strict=True):
        length = _K1 * (1 - _B + _B * len(passage) / mean)
        scores.append(sum(rarity[word] * n * (_K1 + 1) / (n + length) for word, n in count.items()))
    return scores
