"""Samples to figures: percentiles, rates, ratios; and the tables and plots that show them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass
class Sample:
    """What one window of load brought, all its processes together."""

    latencies_s: np.ndarray
    completed: int  # calls answered inside the window
    window_s: float
    load_cpu_s: float  # processor time that the load-making processes took themselves

    @property
    def calls_per_s(self) -> float:
        return self.completed / self.window_s


def summary(samples: Sequence[Sample], cores: int) -> dict[str, float]:
    """All rounds of one competitor: latencies pooled, calls over the sum of the windows."""
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
    """Ours over theirs, round by round: the median, the least and the most."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "least": min(each), "most": max(each), "rounds": len(each)}


def shown_ratio(ratio: dict[str, Any]) -> str:
    """`7.1x`, and with several rounds their range: `7.1x (6.8 to 7.3)`."""
    if ratio["rounds"] == 1:
        return f"{ratio['median']:.2f}x"
    return f"{ratio['median']:.2f}x ({ratio['least']:.2f} to {ratio['most']:.2f})"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as it is printed; the columns named in `emphasised` hold the ratios."""

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
class Section:
    """One row of the benchmark in the report: what was measured and how, and what came out."""

    title: str
    how: str
    tables: list[Table]
    headlines: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    plots: list[Bars] = dataclasses.field(default_factory=list)
