"""The sizes of the measurements: the full run, and the quick one that tests the program."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of one run.

    A round measures every competitor once, one after another. The next round repeats this, so that a slowdown
    of the machine affects all of them.
    """

    name: str
    rounds: int
    window_s: float  # seconds of load for one figure of one round
    empty_window_s: float  # the same for empty calls
    clients: tuple[int, ...]  # clients with one short query a call
    empty_clients: tuple[int, ...]
    workers: tuple[int, ...]  # worker processes whose memory is summed
    bulk_texts: int
    bulk_rounds: int
    mixed_texts: int  # texts of the bulk during which short queries are measured
    mixed_alone_texts: int  # texts of the bulk alone
    mixed_rounds: int
    stage_window_s: float
    quality_texts: int
    starts: int
    family_texts: int
    family_rounds: int
    family_window_s: float
    small_families: bool  # models in the tests' size
    families: tuple[str, ...] = ()  # only these; empty for all
    peers: tuple[str, ...] = ()  # only these; empty for all
    left_out: tuple[str, ...] = ()  # rows that are not measured
    quality_queries: int = 200
    neighbours: int = 10


FULL = Plan(
    name="full",
    rounds=3,
    window_s=2.5,
    empty_window_s=2.0,
    clients=(1, 4, 8, 16),
    empty_clients=(1, 8, 16),
    workers=(1, 3, 8),
    bulk_texts=2000,
    bulk_rounds=3,
    mixed_texts=20_000,
    mixed_alone_texts=2000,
    mixed_rounds=1,
    stage_window_s=3.0,
    quality_texts=1000,
    starts=2,
    family_texts=100,
    family_rounds=3,
    family_window_s=0.25,
    small_families=False,
    left_out=("families",),  # `--only families` writes a page of its own
)
QUICK = Plan(
    name="quick",
    rounds=1,
    window_s=2.0,
    empty_window_s=1.0,
    clients=(1, 16),
    empty_clients=(1, 16),
    workers=(3,),
    bulk_texts=500,
    bulk_rounds=1,
    mixed_texts=2500,
    mixed_alone_texts=500,
    mixed_rounds=1,
    stage_window_s=1.0,
    quality_texts=200,
    starts=1,
    family_texts=100,
    family_rounds=1,
    family_window_s=0.1,
    small_families=True,
    families=("BERT", "WordEmbeddings", "StaticEmbedding"),
    peers=("FastAPI + SentenceTransformer", "mosec"),
    left_out=("startup", "http", "openai", "families"),
)
