"""Chooses the kind of an index by its size, and estimates its memory; pure."""

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
#: The values up to which search is exact, reading each once: 20,000 vectors of 384 take 2 to 3 ms.
FLAT_VALUES = 8_000_000
#: The values beyond which codes are used: for 520,000 vectors of 384 a graph takes over 900 MB, codes a third
#: of that.
HNSW_VALUES = 200_000_000
#: k-means for 256 codes needs 39 vectors a code; a smaller set is searched exactly, whatever its kind.
LEAST_CODED = 10_000
#: Vectors below which a graph gains nothing.
LEAST_LINKED = 1_000
#: Half the links of a vector in the graph's lowest layer.
LINKS = 32


def check(metric: str, kind: str) -> tuple[Metric, Kind]:
    """The two names, if they are valid. Raises InvalidInput."""
    kind = IVF_PQ if kind == "ivf_pq" else kind
    if metric not in METRICS:
        raise InvalidInput(f"metric is {metric!r}; allowed: {', '.join(METRICS)}")
    if kind not in KINDS:
        raise InvalidInput(f"kind is {kind!r}; allowed: {'; '.join(KINDS)}")
    return metric, kind


def resolve(kind: str, count: int, dimension: int) -> str:
    """The kind of an index of `count` vectors that asks for `kind`: FLAT, HNSW or IVF_PQ."""
    if kind == AUTO:
        values = count * dimension
        kind = FLAT if values <= FLAT_VALUES else HNSW if values <= HNSW_VALUES else IVF_PQ
    least = {FLAT: 0, HNSW: LEAST_LINKED, IVF_PQ: LEAST_CODED}[kind]
    return kind if count >= least else FLAT


def subvectors(dimension: int) -> int:
    """The parts, of a byte each, that product quantization cuts a vector into: of four values or more."""
    return next(parts for parts in range(max(1, dimension // 4), 0, -1) if dimension % parts == 0)


def bytes_of(kind: str, count: int, dimension: int) -> int:
    """The approximate bytes of a built index of that kind, ids included."""
    each = {
        FLAT: 4 * dimension,
        HNSW: 4 * dimension + 4 * 2 * LINKS + 24,
        IVF_PQ: subvectors(dimension) + dimension + 8,
    }[kind]
    return count * (each + 9)


def higher_is_better(metric: str) -> bool:
    """Whether a larger score is a better one."""
    return metric != "l2"
