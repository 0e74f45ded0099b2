"""The report's plots as SVG, the same bytes for the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.figures import Bars, Lines, Plot, Shares

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "embedshare"
COLOURS = ["#1b6ca8", "#c8553d", "#e0a030", "#6b8f71", "#7d5ba6", "#888888"]
#: The least share of a bar at which a part has room for its label.
ROOM = 0.06


def draw(plot: Plot, folder: Path) -> Path:
    """Write `plot` to `folder` and return the file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    if isinstance(plot, Bars):
        _bars(axes, plot)
    elif isinstance(plot, Shares):
        _shares(figure, axes, plot)
    else:
        _lines(figure, axes, plot)
    axes.set_title(plot.title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    file = folder / f"{plot.name}.svg"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    return file


def _bars(axes: Any, plot: Bars) -> None:
    width = 0.8 / len(plot.series)
    for number, (name, values) in enumerate(plot.series.items()):
        places = [group + (number - (len(plot.series) - 1) / 2) * width for group in range(len(plot.groups))]
        drawn = axes.bar(places, values, width * 0.94, label=name, color=COLOURS[number % len(COLOURS)])
        axes.bar_label(
            drawn, [f"{value:,.0f}" if value >= 20 else f"{value:.1f}" for value in values], fontsize=8
        )
    axes.set_xticks(range(len(plot.groups)), plot.groups)
    axes.set_ylabel(plot.unit)
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=8)


def _shares(figure: Any, axes: Any, plot: Shares) -> None:
    totals = [sum(values) for values in zip(*plot.series.values(), strict=True)]
    begins = [0.0] * len(totals)
    for number, (name, values) in enumerate(plot.series.items()):
        widths = [value / total for value, total in zip(values, totals, strict=True)]
        drawn = axes.barh(plot.groups, widths, 0.6, begins, label=name, color=COLOURS[number % len(COLOURS)])
        labels = [
            label if width > ROOM else "" for label, width in zip(plot.labels[name], widths, strict=True)
        ]
        axes.bar_label(drawn, labels, label_type="center", fontsize=8, color="white")
        begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
    axes.invert_yaxis()  # the first on top
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    figure.legend(frameon=False, fontsize=8, ncols=len(plot.series), loc="outside lower center")


def _lines(figure: Any, axes: Any, plot: Lines) -> None:
    for number, (name, points) in enumerate(plot.series.items()):
        colour = COLOURS[number % len(COLOURS)]
        xs, ys, labels = zip(*points, strict=True)
        marks = {"marker": "o", "markersize": 3.5} if plot.marked else {}
        axes.plot(xs, ys, color=colour, linewidth=1.3, label=name, **marks)
        for x, y, label in zip(xs, ys, labels, strict=True):
            axes.annotate(label, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=6.5)
        if name in plot.dashed:
            axes.plot(*zip(*plot.dashed[name], strict=True), "--", color=colour, linewidth=0.9, alpha=0.6)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    if plot.logarithmic:
        _logarithmic(axes)
    else:
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    figure.legend(frameon=False, fontsize=8, loc="outside center right")


def _logarithmic(axes: Any) -> None:
    """Both axes, with plain numbers at 1, 2, 5, 10, ..."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
