"""Helpers of the plan's tests: ``ops.explain_cuda`` of one convolution, parsed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from resnet_fused import ops
from resnet_fused.cli._gpus import GPUS

HEADER = (Path(__file__).parents[1] / "csrc/cuda/kernels/sm80/conv_fwd.h").read_text()
MODES = ["plain", "prologue", "projection", "projection prologue"]
STATISTICS = ["statistics", "prologue statistics"]
GRADIENT = "gradient sums"
DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4}


class Tile(NamedTuple):
    m: int
    n: int
    stages: int
    threads: int


def compiled_tiles():
    """Returns the tiles listed in the header that both the kernels and the plan include."""
    table = re.search(r"kConvFwdTiles\[\] = \{(.*?)\};", HEADER, re.S)[1]
    return [Tile(*map(int, row.split(","))) for row in re.findall(r"\{([\d, ]+)\}", table)]


class Plan(NamedTuple):
    engine: str  # "sm90 rows", "sm90", "sm80" or "torch"
    tile: tuple[int, int] | None
    dtype: str | None
    mode: str | None
    tiles: int
    smem: int
    splits: int
    dp_tiles: int
    sk_units: int
    workspace: int
    bytes: int
    microseconds: float | None
    rejected: list[str]  # except sm90's
    sm90: str | None  # why not sm90/conv_sm90
    rows: str | None  # why not sm90/conv_rows


def read(text):
    first, *rejected = text.split("\n  not ")
    named = r"(sm[89]0(?: rows)?) (\d+)x(\d+): (\w+), ([a-z ]+), (\d+) tiles of (\d+) bytes of shared memory, "
    kernel = re.match(named, first)
    splits = re.search(r"(\d+) splits?, ", first)
    sk_units = re.search(r"(\d+) dp_tiles, (\d+) in (\d+) sk_units, ", first)
    workspace = re.search(r"(\d+) bytes of partial sums", first)
    time = re.search(r"([\d.]+) us predicted$", first)
    engine, m, n, dtype, mode, tiles, smem = kernel.groups() if kernel else ("torch", 0, 0, None, None, 0, 0)
    return Plan(
        engine,
        (int(m), int(n)) if kernel else None,
        dtype,
        mode,
        int(tiles),
        int(smem),
        int(splits[1]) if splits else 1,
        int(sk_units[1]) if sk_units else 0,
        int(sk_units[3]) if sk_units else 0,
        int(workspace[1]) if workspace else 0,
        int(re.search(r"(\d+) bytes moved", first)[1]),
        float(time[1]) if time else None,
        [why for why in rejected if not why.startswith("sm90")],
        next((why for why in rejected if re.match("sm90(?! rows)", why)), None),
        next((why for why in rejected if why.startswith("sm90 rows")), None),
    )


def explain(n=8, hw=14, c=256, k=256, r=3, stride=1, dtype="float16", mode="plain", gpu="a100", proj_c=None,
            proj_stride=2, residual=False, aligned=True, allow_tf32=True, groups=1, dilation=1,
            padding=None):  # fmt: skip
    padding = (r // 2 * dilation if padding is None else padding,) * 2
    out = (hw + 2 * padding[0] - dilation * (r - 1) - 1) // stride + 1
    side = [n, proj_c or c, (out - 1) * proj_stride + 1, out * proj_stride] if mode.startswith("projection") else []
    return ops.explain_cuda(
        [n, c, hw, hw], [k, c // groups, r, r], [stride] * 2, padding, [dilation] * 2, groups, dtype, mode, side,
        [proj_stride] * 2, residual, aligned, allow_tf32, GPUS[gpu] if isinstance(gpu, str) else gpu,
    )  # fmt: skip


def plan(**problem):
    return read(explain(**problem))
