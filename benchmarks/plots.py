"""The report's plots: grouped bars as SVG, the same bytes for the same figures."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from benchmarks.figures import Bars

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "embedshare"
COLOURS = ["#1b6ca8", "#c8553d", "#e0a030", "#6b8f71", "#7d5ba6", "#888888"]


def draw(bars: Bars, folder: Path) -> Path:
    """Write `bars` to `folder` and return the file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(bars.series)
    for number, (name, values) in enumerate(bars.series.items()):
        places = [group + (number - (len(bars.series) - 1) / 2) * width for group in range(len(bars.groups))]
        drawn = axes.bar(places, values, width * 0.94, label=name, color=COLOURS[number % len(COLOURS)])
        axes.bar_label(
            drawn, [f"{value:,.0f}" if value >= 20 else f"{value:.1f}" for value in values], fontsize=8
        )
    axes.set_xticks(range(len(bars.groups)), bars.groups)
    axes.set_ylabel(bars.unit)
    axes.set_title(bars.title, fontsize=11)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    file = folder / f"{bars.name}.svg"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    return file
