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


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
