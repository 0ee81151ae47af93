"""Calls the emulated bn_add_act kernels with torch tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import Kernels
from .tensors import DTYPES, POISON, BatchNorm, span, vectors

SHORTCUTS = ["none", "add", "projected"]  # in the order of Shortcut in csrc/cuda/kernels/bn/bn_add_act.h


class Variant(NamedTuple):
    dtype: torch.dtype
    vector: int
    channels_last: bool
    shortcut: str

    @classmethod
    def of(cls, raw: tuple[int, int, bool, int]) -> Variant:
        return cls(DTYPES[raw[0]], raw[1], raw[2], SHORTCUTS[raw[3]])


def parameters(
    x: Tensor,
    out: Tensor,
    bn: BatchNorm,
    shortcut: Tensor | None = None,
    shortcut_bn: BatchNorm | None = None,
    relu: bool = True,
    channels_last: bool = True,
) -> dict:
    p = dict(
        x=x.data_ptr(), out=out.data_ptr(), shortcut=0 if shortcut is None else shortcut.data_ptr(), bn=vectors(bn)
    )
    if shortcut_bn is not None:
        p["shortcut_bn"] = vectors(shortcut_bn)
    n, c, h, w = x.shape
    p.update(projected=shortcut_bn is not None, relu=relu, dtype=DTYPES.index(x.dtype), channels_last=channels_last)
    p.update(batch=n, channels=c, area=h * w)
    return p


def run(
    kernels: Kernels,
    x: Tensor,
    bn: BatchNorm,
    shortcut: Tensor | None = None,
    shortcut_bn: BatchNorm | None = None,
    *,
    relu: bool = True,
    channels_last: bool = True,
    in_place: bool = False,
    schedule: str = "stay",
    sm_count: int = 1,
) -> tuple[Tensor, dict]:
    """Returns the output and the emulator's report. The output is new, poisoned memory, or x if ``in_place``."""
    out = x
    if not in_place:
        out = torch.empty_like(x)
        if out.numel():
            out.untyped_storage().fill_(POISON)
    buffers = [("out", *span(out), "read_write" if in_place else "write")]
    named = {"x": None if in_place else x, "shortcut": shortcut}
    for prefix, b in (("", bn), ("shortcut's ", shortcut_bn)):
        if b is not None:
            named.update({prefix + field: getattr(b, field) for field in BatchNorm._fields[:5]})
    buffers += [(name, *span(t), "read") for name, t in named.items() if t is not None]
    p = parameters(x, out, bn, shortcut, shortcut_bn, relu, channels_last)
    return out, kernels["bn_add_act"].run_bn_add_act(buffers, p, sm_count, schedule, 1)
