"""Chooses the indexes to evict for a new one, so that no caller evicts those that others use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

#: Seconds without use after which an index is evicted first, whoever owns it.
UNUSED_S = 24 * 3600.0


class Held(NamedTuple):
    """A stored index: its id, its owner, its bytes, and the time of its last use in seconds."""

    name: str
    owner: str
    size: int
    used_s: float


def victims(
    held: Sequence[Held], newest: Held, most: int, most_bytes: int, now_s: float
) -> list[Held] | None:
    """The indexes to evict so that `newest` fits among at most `most` indexes of at most `most_bytes`.

    Owners have equal shares, and may use the room that others leave. Room is taken from the owner that holds
    most, the least recently used index first. None if no other owner exceeds its share: then `newest` itself
    is too large.
    """
    kept, gone = [*held, newest], []
    while len(kept) > most or sum(one.size for one in kept) > most_bytes:
        victim = _next(kept, newest, most, most_bytes, now_s)
        if victim is None:
            return None
        kept.remove(victim)
        gone.append(victim)
    return gone


def _next(kept: list[Held], newest: Held, most: int, most_bytes: int, now_s: float) -> Held | None:
    others = [one for one in kept if one is not newest]
    unused = [one for one in others if now_s - one.used_s > UNUSED_S]
    if unused:
        return min(unused, key=lambda one: one.used_s)
    by_count = len(kept) > most
    use: Counter[str] = Counter()
    for one in kept:
        use[one.owner] += 1 if by_count else one.size
    share = (most if by_count else most_bytes) / len(use)
    over = [one for one in others if use[one.owner] > share]
    return min(over, key=lambda one: (-use[one.owner], one.used_s), default=None)
