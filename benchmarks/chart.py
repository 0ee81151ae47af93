"""Draws README's chart from the committed results: ``python -m benchmarks.chart`` writes docs/speed.svg."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a server has no display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "speed.svg"
GPU = "nvidia-h200/networks/models-nvidia-h200-planned.json"
CPUS = {  # the runs of a processor
    "Intel Xeon with AMX (Sapphire Rapids)": (
        "runs/20261130T090532Z.json",
        "runs/20261130T091100Z.json",
        "runs/20261130T091619Z.json",
    ),
    "AMD EPYC (Zen 4)": ("runs/20261129T125817Z.json", "runs/20261129T130827Z.json"),
}
EAGER, COMPILED, OURS = "eager channels_last", "torch.compile", "resnet_fused"
RUNTIME = "best of OpenVINO, ONNX Runtime"
LABELS = {COMPILED: "torch.compile (on the CPU with freezing)"}
COLOURS = {COMPILED: "#8b949e", RUNTIME: "#4a90c2", OURS: "#d1373d"}
TEXT = "#7d8590"  # legible on GitHub's light and dark pages
Speeds = dict[str, dict[str, float]]  # title of a group -> contender -> images per second


def on_gpu(results: Path = ROOT / "benchmarks" / "results") -> Speeds:
    """Whole networks in eval mode, bf16."""
    groups: Speeds = {}
    for title, row in json.loads((results / GPU).read_text())["models"].items():
        network, _, batch = title.partition(" batch ")
        speeds = {name: entry["images_per_s"] for name, entry in row["contenders"].items()}
        groups[f"{network}\nbatch {batch}"] = {name: speeds[name] for name in (EAGER, COMPILED, OURS)}
    return groups


def on_cpu(files: tuple[str, ...], results: Path = ROOT / "benchmarks" / "results") -> Speeds:
    """ResNet-50 in eval mode. torch.compile with freezing, its faster mode."""
    groups: Speeds = {}
    entries = [entry for file in files for entry in json.loads((results / file).read_text())["benchmarks"]]
    for dtype in ("fp32", "bf16"):
        rows: dict[int, dict[str, float]] = {}
        for entry in entries:
            info: dict[str, Any] = entry["extra_info"]
            if (info["kind"], info["workload"], info["dtype"]) == ("model", "ResNet-50", dtype):
                rows.setdefault(info["batch"], {})[info["contender"]] = info["images_per_s"]
        for batch, row in sorted(rows.items(), reverse=True):
            groups[f"{dtype}\nbatch {batch}"] = {
                EAGER: row["eager_cl"],
                COMPILED: row["freezing"],
                RUNTIME: max(row.get(name, 0) for name in ("openvino", "openvino_throughput", "onnxruntime")),
                OURS: row["ours"],
            }
    return groups


def draw(file: Path) -> None:
    """Writes the chart; equal results give equal bytes."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "resnet_fused", "font.size": 9, "text.color": TEXT}
    style |= {f"{part}.color": TEXT for part in ("xtick", "ytick")} | {"axes.labelcolor": TEXT, "axes.edgecolor": TEXT}
    with plt.rc_context(style):
        figure, (gpu, *cpus) = plt.subplots(1 + len(CPUS), 1, figsize=(10, 3.1 * (1 + len(CPUS))))
        _panel(gpu, on_gpu(), "NVIDIA H200, bf16, inference in CUDA graphs")
        for axis, (name, files) in zip(cpus, CPUS.items(), strict=True):
            _panel(axis, on_cpu(files), f"{name}, 2 threads, ResNet-50, inference")
        for axis in (gpu, *cpus):
            axis.set_ylabel("times as fast as eager")
        handles, labels = cpus[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
        figure.tight_layout(rect=(0, 0.04, 1, 1))
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def ratios(group: dict[str, float]) -> dict[str, float]:
    """Speeds over eager's."""
    return {name: speed / group[EAGER] for name, speed in group.items() if name != EAGER}


def _panel(axis: Axes, groups: Speeds, title: str) -> None:
    names = list(dict.fromkeys(name for group in groups.values() for name in group if name != EAGER))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        at = [x + (i - (len(names) - 1) / 2) * width for x in range(len(groups))]
        heights = [ratios(group)[name] for group in groups.values()]
        bars = axis.bar(at, heights, 0.92 * width, label=LABELS.get(name, name), color=COLOURS[name], zorder=2)
        colour = COLOURS[name] if name == OURS else TEXT
        axis.bar_label(bars, fmt="%.2f", fontsize=9.5 - len(names), padding=1, color=colour)
    axis.axhline(1, color=TEXT, linewidth=1, linestyle=(0, (4, 3)), label=f"{EAGER} = 1", zorder=3)
    axis.set_xticks(range(len(groups)), groups)
    axis.set_title(title, fontsize=10)
    axis.tick_params(length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.set_yticks([])
    axis.margins(y=0.08)


if __name__ == "__main__":
    draw(FILE)
