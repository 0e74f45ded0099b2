"""Figures from samples: percentiles, rates, ratios; and the report's tables and plots."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass
class Sample:
    """The result of one window of load, over all its processes."""

    latencies_s: np.ndarray
    completed: int  # calls answered inside the window
    window_s: float
    load_cpu_s: float  # processor time of the load-making processes themselves

    @property
    def calls_per_s(self) -> float:
        return self.completed / self.window_s


def summary(samples: Sequence[Sample], cores: int) -> dict[str, float]:
    """Summarize all rounds of one competitor: latencies pooled, calls over the sum of the windows."""
    latencies = np.concatenate([sample.latencies_s for sample in samples])
    p50, p99 = np.percentile(latencies, (50, 99)) * 1e3
    window_s = sum(sample.window_s for sample in samples)
    return {
        "calls": len(latencies),
        "calls_per_s": sum(sample.completed for sample in samples) / window_s,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "load_cpu_share": sum(sample.load_cpu_s for sample in samples) / (window_s * cores),
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return our figures over theirs, round by round: the median, the least and the most."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "least": min(each), "most": max(each), "rounds": len(each)}


def shown_ratio(ratio: dict[str, Any]) -> str:
    """`7.1x`, and with several rounds their range: `7.1x (6.8 to 7.3)`."""
    if ratio["rounds"] == 1:
        return f"{ratio['median']:.2f}x"
    return f"{ratio['median']:.2f}x ({ratio['least']:.2f} to {ratio['most']:.2f})"


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Each row at length 1, in float64."""
    wide = rows.astype(np.float64)
    unit: np.ndarray = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The cosine of each row of `one` with the same row of `other`."""
    found: np.ndarray = (unit_rows(one) * unit_rows(other)).sum(axis=1)
    return found


def counted(number: int, noun: str) -> str:
    """`1 client`, `16 clients`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


@dataclasses.dataclass(frozen=True)
class Table:
    """A printed table; the columns named in `emphasised` hold the ratios."""

    columns: list[str]
    rows: list[list[str]]
    emphasised: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Bars:
    """A plot: one group of bars for each of `groups`, one bar for each competitor."""

    name: str
    title: str
    unit: str
    groups: list[str]
    series: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Shares:
    """A plot: one horizontal bar for each of `groups`, cut into its parts, all of the same length.

    `labels` has, part by part as `series`, the text of each part with room for it.
    """

    name: str
    title: str
    groups: list[str]
    series: dict[str, list[float]]
    labels: dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Lines:
    """A plot: one line for each competitor, through points of x, y and a label; `dashed` has a second line in
    the same colour for some of them. Both scales begin at zero or are logarithmic; `marked` shows points."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[float, float, str]]]
    dashed: dict[str, list[tuple[float, float]]] = dataclasses.field(default_factory=dict)
    logarithmic: bool = False
    marked: bool = True


Plot = Bars | Shares | Lines


@dataclasses.dataclass(frozen=True)
class Section:
    """One row of the benchmark in the report: the measurement, its method and its results."""

    title: str
    how: str
    tables: list[Table]
    headlines: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    plots: Sequence[Plot] = dataclasses.field(default_factory=list)
    embeds: bool = True  # its figures are of calls that return vectors, shown with their quality
