"""One style for all figures: no display needed, readable on a phone, the same file for the same numbers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RESIDUAL, PLAIN, THIRD, FOURTH, GREY = "#c1272d", "#3b7dbd", "#2e8b57", "#e0a63c", "#6b7280"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "resnet_fused",
}


def style() -> AbstractContextManager[None]:
    """The context in which studies draw and save."""
    return mpl.rc_context(STYLE)


def panels(
    columns: int, rows: int = 1, width: float = 4.2, height: float = 3.4, **options
) -> tuple[Figure, list[Axes]]:
    """A figure and the list of its axes, row by row. ``options`` go to ``Figure.subplots`` (``sharey=True``)."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def band(axes: Axes, x: Sequence[float], runs: Sequence[Sequence[float]], label: str, colour: str, **line) -> None:
    """The mean of ``runs`` (one sequence per seed) as a line, their range as a band."""
    values = np.asarray(runs, dtype=np.float64)
    axes.plot(x, values.mean(0), label=label, color=colour, **line)
    axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)


def log_ticks(axis: Axis) -> None:
    """Labels a logarithmic axis 1, 2, 5, 10, ... instead of with powers of ten."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def errors_by_epoch(axes: Axes, runs: Sequence[Sequence[float]], label: str, colour: str, **line) -> None:
    """:func:`band` of errors in [0, 1], one sequence per seed, in percent against the epoch."""
    percent = [[100 * error for error in run] for run in runs]
    band(axes, range(1, len(percent[0]) + 1), percent, label, colour, markersize=4, **line)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


def log_percent(axes: Axes, label: str) -> None:
    """A logarithmic y axis with percent as plain numbers. Call it after drawing."""
    low, high = axes.dataLim.intervaly
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if 0.7 * low < tick < 1.5 * high]
    axes.set_yscale("log")
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylabel(label)


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
