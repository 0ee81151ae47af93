"""Helpers of the plan's tests: ``ops.explain_cuda`` of one convolution."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from resnet_fused import ops, plans
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


class Rejected(NamedTuple):
    engine: str
    tile: tuple[int, int] | None  # None: the whole engine
    why: str
    reason: str
    microseconds: float | None


class Plan(NamedTuple):
    engine: str  # "sm90:rows", "sm90", "sm80" or "torch"
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
    rejected: list[Rejected]
    text: str

    def why_not(self, engine):
        """The reasons against an engine and its tiles."""
        return [r.reason for r in self.rejected if r.engine == engine]


def tile_of(fields):
    return (fields["tile_m"], fields["tile_n"]) if "tile_m" in fields else None


def read(explained):
    plan = plans.read(explained)
    f = plan.fields
    defaults = dict(tiles=0, smem=0, splits=1, dp_tiles=0, sk_units=0, workspace=0)
    numbers = (f.get(name, default) for name, default in defaults.items())
    rejected = [
        Rejected(r.fields["engine"], tile_of(r.fields), r.fields["why"], r.reason, r.fields.get("microseconds"))
        for r in plan.rejected
    ]
    return Plan(
        f["engine"], tile_of(f), f.get("dtype"), f.get("mode"), *numbers, f["bytes"], f.get("microseconds"), rejected,
        plan.text,
    )  # fmt: skip


def explain(n=8, hw=14, c=256, k=256, r=3, stride=1, dtype="float16", mode="plain", gpu="a100", proj_c=None,
            proj_stride=2, residual=False, aligned=True, allow_tf32=True, groups=1, dilation=1,
            padding=None):  # fmt: skip
    padding = (r // 2 * dilation if padding is None else padding,) * 2
    out = (hw + 2 * padding[0] - dilation * (r - 1) - 1) // stride + 1
    projected = [n, proj_c or c, (out - 1) * proj_stride + 1, out * proj_stride]
    return ops.explain_cuda(
        [n, c, hw, hw], [k, c // groups, r, r], [stride] * 2, padding, [dilation] * 2, groups, dtype, mode,
        projected if mode.startswith("projection") else [], [proj_stride] * 2, residual, aligned, allow_tf32,
        GPUS[gpu] if isinstance(gpu, str) else gpu,
    )  # fmt: skip


def plan(**problem):
    return read(explain(**problem))
