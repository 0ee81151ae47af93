"""One PNG: images/s of every variant, with one panel per network and dtype."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .settings import Settings
from .speed import CHANNELS_LAST, COMPILED, EAGER, FUSED, Row

COLOURS = {EAGER: "#c3c8d0", CHANNELS_LAST: "#9aa3b0", COMPILED: "#6f8fb5", FUSED: "#d1603d"}


def draw(path: Path, machine: dict[str, Any], settings: Settings, rows: list[Row]) -> None:
    """Draws the rows that have a speed; the others show their status instead of a bar."""
    models = list(dict.fromkeys(r.model for r in rows))
    dtypes = list(dict.fromkeys(r.dtype for r in rows))
    figure = Figure(figsize=(5 * len(dtypes), 0.9 + 2.1 * len(models)), layout="constrained")
    FigureCanvasAgg(figure)  # works without a display, whatever matplotlib's backend setting
    panels = figure.subplots(len(models), len(dtypes), squeeze=False)
    for line, model in zip(panels, models, strict=True):
        for axes, dtype in zip(line, dtypes, strict=True):
            _panel(axes, [r for r in rows if (r.model, r.dtype) == (model, dtype)])
            axes.set_title(f"{model}, {dtype}", fontsize=10, loc="left")
    for axes in panels[-1]:
        axes.set_xlabel(f"images/s (batch {settings.batch}, {settings.size}x{settings.size}); higher is better")
    figure.suptitle(f"Inference on {machine['device']}, torch {machine['torch']}", fontsize=11)
    figure.savefig(path, dpi=150)


def _panel(axes: Any, rows: list[Row]) -> None:
    speeds = [r.images_per_second or 0.0 for r in rows]
    bars = axes.barh([r.variant for r in rows], speeds, color=[COLOURS[r.variant] for r in rows], height=0.7)
    labels = [f"{r.images_per_second:.1f}" if r.images_per_second else r.status for r in rows]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.invert_yaxis()  # eager on top
    axes.set_xlim(0, 1.15 * max(speeds))  # room for the numbers
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
