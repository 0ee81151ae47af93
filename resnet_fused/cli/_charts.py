"""PNG charts of benchmark results."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a server has no display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from ._bench_results import OURS, Results, Row
from ._bench_tables import number

OURS_COLOURS = {OURS: "#c1272d", "ours_frozen": "#7d1a1e", "ours_compile": "#e8888b"}
PEER_COLOURS = ("#9aa3ad", "#5f6b78", "#8fb8de", "#3b7dbd", "#7bc47f", "#e0a63c", "#a07cc5", "#4f9d8f")


def write(results: Results, folder: Path) -> list[Path]:
    """Writes a chart of images per second for each dtype and a chart of ratios for each kind and dtype."""
    written = []
    colours = _colours(results)
    for kind, dtype, rows in results.sections():
        if kind == "model":
            written.append(_throughput(results, dtype, rows, colours, folder / f"models-{dtype}.png"))
        if results.has_ours:
            written.append(_ratios(results, kind, dtype, rows, colours, folder / f"{kind}s-{dtype}-ratios.png"))
    return written


def _colours(results: Results) -> dict[str, str]:
    """One colour per contender, the same in every chart."""
    peers = {n: PEER_COLOURS[i % len(PEER_COLOURS)] for i, n in enumerate(results.peers(results.rows))}
    return OURS_COLOURS | peers


def _throughput(results: Results, dtype: str, rows: list[Row], colours: dict[str, str], path: Path) -> Path:
    models = list(dict.fromkeys(row.workload for row in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(1.5 + 5.5 * len(models), 4.6), squeeze=False)
    labels = results.labels(rows)
    for axis, model in zip(axes[0], models, strict=True):
        _bars(axis, [row for row in rows if row.workload == model], labels, colours)
        axis.set_title(f"{model}, {dtype}")
    axes[0][0].set_ylabel("images per second")
    handles, names = axes[0][0].get_legend_handles_labels()
    columns = 2 * len(models)  # as many as fit the width
    figure.legend(handles, names, loc="lower center", ncols=columns, frameon=False)
    figure.suptitle(results.device, fontsize=10, color="#555555")
    figure.tight_layout(rect=(0, 0.05 * math.ceil(len(names) / columns) + 0.03, 1, 1))
    return _save(path)


def _bars(axis: Axes, rows: list[Row], labels: dict[str, str], colours: dict[str, str]) -> None:
    width = 0.85 / len(labels)
    for i, (name, label) in enumerate(labels.items()):
        places = [at + (i - (len(labels) - 1) / 2) * width for at in range(len(rows))]
        heights = [row.entries[name].images_per_s if name in row.entries else 0 for row in rows]
        bars = axis.bar(places, heights, width, label=label, color=colours[name])
        if name == OURS:
            axis.bar_label(bars, fmt=number, fontsize=8, padding=1)
    axis.set_xticks(range(len(rows)), [f"batch {row.batch}" for row in rows])
    _plain(axis)


def _ratios(results: Results, kind: str, dtype: str, rows: list[Row], colours: dict[str, str], path: Path) -> Path:
    figure, axis = plt.subplots(figsize=(9, 1.6 + 0.36 * len(rows)))
    for name, label in results.peers(rows).items():
        points = [(ratio, i) for i, row in enumerate(rows) if (ratio := row.ratio(name)) is not None]
        if points:
            x, y = zip(*points, strict=True)
            axis.scatter(x, y, s=42, label=label, color=colours[name], zorder=3)
    axis.axvline(1, color="#c1272d", linewidth=1.2, zorder=2)
    axis.set_yticks(range(len(rows)), [f"{row.workload}, batch {row.batch}" for row in rows])
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("how many times as fast resnet_fused is (left of the line: the peer is faster)")
    axis.set_title(f"{kind}s, {dtype}: resnet_fused against each peer\n{results.device}", fontsize=10)
    axis.grid(axis="both", color="#e5e5e5", zorder=0)
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
    _plain(axis)
    figure.tight_layout()
    return _save(path)


def _plain(axis: Axes) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=130)
    plt.close()
    return path
