"""Which kind of index suits so many vectors of such a dimension, and what it takes; pure."""

from __future__ import annotations

from typing import Final, Literal, get_args

from embedshare.errors import InvalidInput

#: Squared L2 distances (lower is better); cosine similarities and inner products (higher is better).
Metric = Literal["l2", "cosine", "ip"]
METRICS: Final[tuple[Metric, ...]] = get_args(Metric)
Kind = Literal["flat", "hnsw", "ivf,pq", "auto"]
FLAT: Final = "flat"
HNSW: Final = "hnsw"
IVF_PQ: Final = "ivf,pq"
AUTO: Final = "auto"
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
#: Exact search reads every value once: up to here (20,000 vectors of 384) that is 2 to 3 ms.
FLAT_VALUES = 8_000_000
#: Beyond this (520,000 vectors of 384) a graph takes over 900 MB, and codes take a third of that.
HNSW_VALUES = 200_000_000
#: k-means for 256 codes asks for 39 vectors a code; a smaller set is searched exactly, whatever was asked.
LEAST_CODED = 10_000
#: Likewise a graph of fewer vectors than this gains nothing.
LEAST_LINKED = 1_000
#: Links of a vector in the graph's lowest layer are twice as many.
LINKS = 32


def check(metric: str, kind: str) -> tuple[Metric, Kind]:
    """The two names, where there are such.

    Raises InvalidInput.
    """
    kind = IVF_PQ if kind == "ivf_pq" else kind
    if metric not in METRICS:
        raise InvalidInput(f"metric is {metric!r}; allowed: {', '.join(METRICS)}")
    if kind not in KINDS:
        raise InvalidInput(f"kind is {kind!r}; allowed: {'; '.join(KINDS)}")
    return metric, kind


def resolve(kind: str, count: int, dimension: int) -> str:
    """The kind that `count` vectors get where `kind` was asked for: FLAT, HNSW or IVF_PQ."""
    if kind == AUTO:
        values = count * dimension
        kind = FLAT if values <= FLAT_VALUES else HNSW if values <= HNSW_VALUES else IVF_PQ
    least = {FLAT: 0, HNSW: LEAST_LINKED, IVF_PQ: LEAST_CODED}[kind]
    return kind if count >= least else FLAT


def subvectors(dimension: int) -> int:
    """Parts that product quantization cuts a vector into, a byte each: of four values or more."""
    return next(parts for parts in range(max(1, dimension // 4), 0, -1) if dimension % parts == 0)


def bytes_of(kind: str, count: int, dimension: int) -> int:
    """About what an index of that kind takes once it is built; ids included."""
    each = {
        FLAT: 4 * dimension,
        HNSW: 4 * dimension + 4 * 2 * LINKS + 24,
        IVF_PQ: subvectors(dimension) + dimension + 8,
    }[kind]
    return count * (each + 9)


def higher_is_better(metric: str) -> bool:
    """Whether a larger score is a better one."""
    return metric != "l2"
