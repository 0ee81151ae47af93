"""Calls the emulated convolution kernels with torch tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import Kernels
from .bn_train import finish
from .tensors import DTYPES, POISON, SUFFIXES, BatchNorm, span, vectors

MODES = ["plain", "prologue", "projection", "projection-prologue"]
STATISTICS = ["statistics", "prologue-statistics"]
GRADIENT = "gradient-sums"
# Mode -> (Prologue, Epilogue) of csrc/cuda/kernels/conv.h.
AXES = dict(zip([*MODES, *STATISTICS, GRADIENT], [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3)], strict=True))


def is_mode(name: str) -> str:
    """The C++ expression that is true for compiled variants ``v`` of a mode."""
    prologue, epilogue = AXES[name]
    return f"(v.mode == ConvMode{{static_cast<Prologue>({prologue}), static_cast<Epilogue>({epilogue})}})"


class Variant(NamedTuple):
    dtype: torch.dtype
    tile: tuple[int, int]  # pixels, channels
    mode: str

    @classmethod
    def of(cls, numbers: tuple[int, ...]) -> Variant:
        mode = next(name for name, axes in AXES.items() if axes == tuple(numbers[3:]))
        return cls(DTYPES[numbers[0]], (numbers[1], numbers[2]), mode)

    @property
    def numbers(self) -> tuple[int, ...]:
        return DTYPES.index(self.dtype), *self.tile, *AXES[self.mode]

    def __str__(self) -> str:
        return f"{str(self.dtype)[6:]}-{self.tile[0]}x{self.tile[1]}-{self.mode}"


class Conv(NamedTuple):
    """A convolution and its BatchNorm, with an optional pre-activation BatchNorm; x and weight are channels_last."""

    x: Tensor
    weight: Tensor
    bn: BatchNorm = BatchNorm()
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    pre: BatchNorm | None = None

    def output_shape(self) -> tuple[int, int, int, int]:
        sizes = zip(self.x.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        out = [(size + 2 * pad - dil * (taps - 1) - 1) // stride + 1 for size, taps, stride, pad, dil in sizes]
        return self.x.shape[0], self.weight.shape[0], *out

    def operands(self) -> dict:
        (n, c, h, w), (k, _, r, s), (p, q) = self.x.shape, self.weight.shape, self.output_shape()[2:]
        shape = dict(n=n, h=h, w=w, c=c, k=k, r=r, s=s, p=p, q=q)
        pairs = dict(stride=self.stride, pad=self.padding, dil=self.dilation)
        shape.update({f"{name}_{axis}": pair[i] for name, pair in pairs.items() for i, axis in enumerate("hw")})
        d = dict(x=self.x.data_ptr(), weight=self.weight.data_ptr(), shape=shape, bn=vectors(self.bn))
        if self.pre is not None:
            d["pre"] = vectors(self.pre)
        return d

    def buffers(self, prefix: str = "") -> list:
        named = {"x": self.x, "weight": self.weight}
        for name, bn in (("bn", self.bn), ("pre", self.pre)):
            if bn is not None:
                named.update({f"{name}.{field}": getattr(bn, field) for field in BatchNorm._fields[:5]})
        return [(prefix + name, *span(t), "read") for name, t in named.items() if t is not None]


def run(
    kernels: Kernels,
    tile: tuple[int, int],
    conv: Conv,
    *,
    projection: Conv | None = None,
    residual: Tensor | None = None,
    relu: bool = True,
    splits: int = 1,
    dp_tiles: int = 0,
    sk_units: int = 0,
    schedule: str = "stay",
    seed: int = 1,
    sm_count: int = 4,
    family: str = "conv_fwd",
) -> tuple[Tensor, dict]:
    """Returns the output (channels_last) and the emulator's report. ``family``: conv_fwd, conv_sm90 or conv_rows.

    ``dp_tiles``, ``sk_units``: stream-K of conv_sm90. The first ``dp_tiles`` are computed whole; the steps of the
    remaining tiles are split into ``sk_units`` parts.
    """
    shape = conv.output_shape()
    out = torch.empty(shape, dtype=conv.x.dtype, memory_format=torch.channels_last)
    out.untyped_storage().fill_(POISON)
    buffers = [*conv.buffers(), ("out", *span(out), "write")]
    params = dict(main=conv.operands(), out=out.data_ptr(), relu=relu, splits=splits)
    if projection is not None:
        buffers += projection.buffers("projection.")
        params["projection"] = projection.operands()
    if residual is not None:
        buffers.append(("residual", *span(residual), "read"))
        params["residual"] = residual.data_ptr()
    if splits > 1:
        partials = torch.empty(splits + (projection is not None), *shape)
        buffers.append(("partials", *span(partials), "scratch"))
        params["partials"] = partials.data_ptr()
    if sk_units:
        tail = -(-shape[0] * shape[2] * shape[3] // tile[0]) * -(-shape[1] // tile[1]) - dp_tiles
        partials = torch.empty(sk_units + tail * (1 + (projection is not None)) - 1, *tile)
        buffers.append(("partials", *span(partials), "scratch"))
        params.update(partials=partials.data_ptr(), dp_tiles=dp_tiles, sk_units=sk_units)
    side = projection or conv
    mode = ("projection" if projection else "") + ("-" if projection and side.pre else "")
    mode = mode + ("prologue" if side.pre else "") or "plain"
    return out, launch(kernels, family, Variant(conv.x.dtype, tile, mode), buffers, params, sm_count, schedule, seed)


def launch(kernels: Kernels, family: str, variant: Variant, buffers: list, params: dict, *how: Any) -> dict:
    """Returns the emulator's report. ``how``: number of SMs, schedule, seed."""
    kind = "stats" if variant.mode in STATISTICS else "gradient" if variant.mode == GRADIENT else "fwd"
    stem = f"conv_{kind}" if family == "conv_fwd" else f"{family}_stats" if kind == "stats" else family
    library = kernels[f"{stem}_{SUFFIXES[variant.dtype]}"]
    return getattr(library, f"run_{family}")(buffers, params, variant.numbers, *how)


def part_pixels(family: str, tile: tuple[int, int], prologue: bool) -> int:
    """Pixels per part of the statistics: a whole tile, or a warp group's share of it."""
    return 128 if (family, tile, prologue) == ("conv_sm90", (256, 64), True) else tile[0]


def run_statistics(
    kernels: Kernels,
    tile: tuple[int, int],
    conv: Conv,
    *,
    schedule: str = "stay",
    seed: int = 1,
    sm_count: int = 4,
    family: str = "conv_fwd",
) -> tuple[Tensor, list[Tensor], dict]:
    """Returns the pre-BN output, its mean and variance, and the kernel's report with bn_finish's errors added."""
    shape = conv.output_shape()
    out = torch.empty(shape, dtype=conv.x.dtype, memory_format=torch.channels_last)
    out.untyped_storage().fill_(POISON)
    pixels = shape[0] * shape[2] * shape[3]
    each = part_pixels(family, tile, conv.pre is not None)
    parts = torch.empty(-(-pixels // each), 3, shape[1])
    parts.untyped_storage().fill_(POISON)
    buffers = [*conv.buffers(), ("out", *span(out), "write"), ("statistics", *span(parts), "write")]
    params = dict(main=conv.operands(), out=out.data_ptr(), relu=False, splits=1, statistics=parts.data_ptr())
    variant = Variant(conv.x.dtype, tile, "prologue-statistics" if conv.pre else "statistics")
    report = launch(kernels, family, variant, buffers, params, sm_count, schedule, seed)
    moments, finished = finish(kernels, parts, each, pixels, schedule=schedule, seed=seed)
    report["errors"] += finished["errors"]
    return out, moments, report


def run_gradient(
    kernels: Kernels,
    tile: tuple[int, int],
    conv: Conv,
    pre_bn: Tensor,
    grad_addend: Tensor | None = None,
    *,
    schedule: str = "stay",
    seed: int = 1,
) -> tuple[Tensor, list[Tensor], dict]:
    """Convolves a gradient, adds ``grad_addend``, and sums for the backward pass of ``relu(conv.bn(pre_bn))``.

    Returns the output, the two sums, and the kernel's report with bn_finish's errors added.
    """
    shape = conv.output_shape()
    out = torch.empty(shape, dtype=conv.x.dtype, memory_format=torch.channels_last)
    out.untyped_storage().fill_(POISON)
    parts = torch.empty(-(-shape[0] * shape[2] * shape[3] // tile[0]), 2, shape[1])
    parts.untyped_storage().fill_(POISON)
    buffers = [*conv.buffers(), ("pre_bn", *span(pre_bn), "read"), ("out", *span(out), "write")]
    buffers.append(("statistics", *span(parts), "write"))
    params = dict(main=conv.operands(), pre_bn=pre_bn.data_ptr(), out=out.data_ptr(), relu=False, splits=1)
    params["statistics"] = parts.data_ptr()
    if grad_addend is not None:
        buffers.append(("grad_addend", *span(grad_addend), "read"))
        params["residual"] = grad_addend.data_ptr()
    variant = Variant(conv.x.dtype, tile, GRADIENT)
    report = launch(kernels, "conv_fwd", variant, buffers, params, 4, schedule, seed)
    var = conv.bn.var.float()
    sums, finished = finish(kernels, parts, tile[0], 0, var=var, eps=conv.bn.eps, schedule=schedule, seed=seed)
    report["errors"] += finished["errors"]
    return out, sums, report
