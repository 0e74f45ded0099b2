"""How much is measured: the full run, and the quick one that shows that everything works."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of one run.

    A round measures every competitor once, one after the other; the next round does it again, so that a
    machine that gets slower in between is slower for all of them.
    """

    name: str
    rounds: int
    window_s: float  # how long load runs for one figure of (c), (e) and (f)
    empty_window_s: float  # the same for empty calls
    workers: tuple[int, ...]  # worker processes whose memory is summed
    bulk_texts: int
    bulk_rounds: int
    quality_texts: int
    starts: int
    clients: tuple[int, ...] = (1, 8, 16)
    quality_queries: int = 200
    neighbours: int = 10


FULL = Plan(
    name="full",
    rounds=3,
    window_s=5.0,
    empty_window_s=3.0,
    workers=(1, 3, 8),
    bulk_texts=2000,
    bulk_rounds=3,
    quality_texts=1000,
    starts=3,
)
QUICK = Plan(
    name="quick",
    rounds=1,
    window_s=2.5,
    empty_window_s=1.0,
    workers=(1, 3),
    bulk_texts=500,
    bulk_rounds=1,
    quality_texts=200,
    starts=1,
)
