"""Reads the measured times from GPU runs in ``benchmarks/results``, for comparison with the cost model."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from resnet_fused import ops
from resnet_fused.cli import _gpus

RESULTS = Path(__file__).resolve().parent / "results"
FILES = "kernels-*.json"
UNCOMMITTED = "gpu-out"  # output of `make gpu`, ignored by git
OURS, CUDNN = "resnet_fused", "cudnn_convolution_add_relu"
#: The model assumes inputs in memory, but back-to-back launches find them in L2. Such a sample is used only if copying
#: its bytes at the measured rate takes less than this fraction of its time.
LEAST_MEMORY = 0.25


class Problem(NamedTuple):
    """Arguments of ``ops.predict_cuda`` except the constants."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int
    residual: bool
    engine: str

    def microseconds(self, device: list[int], constants: list[float]) -> float:
        # float16 takes as long as bfloat16
        pad = self.weight[2] // 2
        stride = [self.stride] * 2
        return ops.predict_cuda(
            self.x, self.weight, stride, [pad, pad], "bfloat16", self.residual, device, self.engine, constants
        )


class Sample(NamedTuple):
    """One measured median."""

    problem: Problem
    layer: str
    microseconds: float
    alone: bool  # a single launch, which includes the cost of a graph replay; else one of many in a graph


class Run(NamedTuple):
    folder: Path
    gpu: str
    date: str  # of the newest file
    device: list[int]
    samples: list[Sample]
    bytes_per_s: list[float]
    flop_per_s: list[float]

    @property
    def arch(self) -> int:
        return self.device[0]

    @property
    def name(self) -> str:
        """The value of ``measured_by`` in the constants."""
        return self.folder.name


class NoRun(Exception):
    """A sentence that says what is missing."""


def device_of(gpu: str) -> list[int]:
    """Returns the device description (``cli/_gpus.py``) of the GPU that CUDA calls ``gpu``."""
    plain = re.sub(r"[^a-z0-9]", "", gpu.lower())
    known = [name for name in _gpus.GPUS if name in plain]
    if not known:
        raise NoRun(f"the GPU is {gpu}, none of {', '.join(_gpus.GPUS)}; add it to resnet_fused/cli/_gpus.py")
    return _gpus.GPUS[max(known, key=len)]


def read(folder: Path) -> Run:
    """Reads all files in and below a folder; they must be of one GPU."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.rglob(FILES))]
    if not reports:
        raise NoRun(f"{folder} has no {FILES}; a folder that benchmarks.gpu_kernels wrote expected")
    gpus = {report["environment"]["gpu"] for report in reports}
    if len(gpus) != 1:
        raise NoRun(f"{folder} has results of {', '.join(sorted(gpus))}; a folder for each GPU expected")
    (gpu,) = gpus
    device = device_of(gpu)
    return Run(
        folder,
        gpu,
        max(report["environment"]["date"] for report in reports),
        device,
        [sample for report in reports for sample in _samples(report, device)],
        [report["roofline"]["bytes_per_s"] for report in reports],
        [report["roofline"]["flop_per_s"] for report in reports],
    )


def runs(results: Path) -> list[Run]:
    """The runs of all folders that have one."""
    folders = [path for path in sorted(results.iterdir()) if path.is_dir() and path.name != UNCOMMITTED]
    return [read(folder) for folder in folders if any(folder.rglob(FILES))]


def _samples(report: dict[str, Any], device: list[int]) -> list[Sample]:
    named = report["environment"]["engine"]
    ours = named if re.match(r"(sm[89]0|torch)\b", named) else None  # else the kernel is unknown
    found = []
    for title, layer in report["layers"].items():
        if layer.get("kind") != "Layer":
            continue
        for contender, engine in ((OURS, ours), (CUDNN, "cudnn")):
            row = layer["contenders"].get(contender)
            if row is None or engine is None:
                continue
            problem = _problem(layer, engine)
            if not _runs(problem, device):
                continue
            found.append(Sample(problem, title, row["median_us"], True))
            copied = 1e6 * layer["bytes"] / report["roofline"]["bytes_per_s"]
            if copied < LEAST_MEMORY * row["warm_us"]:
                found.append(Sample(problem, title, row["warm_us"], False))
    return found


def _problem(layer: dict[str, Any], engine: str) -> Problem:
    n, c, h, w = layer["x"]
    k, _, r, s = layer["weight"]
    stride = layer["stride"]
    elements = n * c * h * w + k * c * r * s + n * k * -(-h // stride) * -(-w // stride)
    return Problem((n, c, h, w), (k, c, r, s), stride, layer["bytes"] > 2 * elements, engine)


def _runs(problem: Problem, device: list[int]) -> bool:
    """Whether the engine supports the layer; if not, another one was timed."""
    try:
        problem.microseconds(device, [])
    except RuntimeError:
        return False
    return True
