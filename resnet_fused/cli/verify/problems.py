"""The calls to verify: an op, a geometry, and a kind of numbers, with seeded arguments that are equal on all machines.

The definition of an op is the function of the same name in :mod:`resnet_fused.reference`. The op takes the arguments of
its definition, followed by :meth:`Problem.options`. Activations are channels_last, the kernels' layout.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

EPS = 1e-3
#: Minimum distance of a ReLU's input from 0, so that rounding cannot change the gradient's mask.
RELU_MARGIN = 0.04


class Kind(NamedTuple):
    """A kind of numbers: the activations' dtype, and whether float32 may use TF32."""

    dtype: torch.dtype
    tf32: bool

    @property
    def vectors(self) -> torch.dtype:
        """The dtype of BatchNorm tensors: in eager PyTorch float32 for 16-bit activations."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


KINDS = {
    "float16": Kind(torch.float16, False),
    "bfloat16": Kind(torch.bfloat16, False),
    "tf32": Kind(torch.float32, True),
    "float32": Kind(torch.float32, False),
    "float64": Kind(torch.float64, False),
}


class Shape(NamedTuple):
    """A convolution: input N, C, H, W; K filters of R x R; stride, padding, dilation."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def out(self) -> tuple[int, int]:
        extent = self.dilation * (self.r - 1)
        return tuple((size + 2 * self.padding - extent - 1) // self.stride + 1 for size in (self.h, self.w))  # type: ignore[return-value]

    def pairs(self) -> tuple[list[int], list[int], list[int]]:
        return [self.stride] * 2, [self.padding] * 2, [self.dilation] * 2


#: Small enough for the emulator: all filter sizes and strides, partial tiles, few channels, many steps in depth.
SMALL = (
    Shape(2, 64, 14, 14, 64, 3, 1, 1),
    Shape(3, 200, 9, 7, 72, 1, 2),
    Shape(1, 64, 10, 11, 72, 3, 1, 2, 2),
    Shape(3, 8, 9, 11, 16, 3, 1, 1),
    Shape(2, 24, 9, 9, 8, 5, 1, 2),
    Shape(2, 128, 9, 7, 128, 3, 2, 1),
    Shape(1, 256, 7, 7, 264, 1),
)
#: More tiles than any GPU has SMs, so that persistent kernels loop; long sums; sizes found in networks.
LARGE = (
    Shape(24, 64, 33, 57, 64, 3, 1, 1),
    Shape(32, 128, 28, 28, 256, 3, 1, 1),
    Shape(8, 256, 14, 14, 256, 3, 1, 1),
    Shape(64, 512, 7, 7, 512, 3, 1, 1),
    Shape(2, 2048, 7, 7, 512, 1),
    Shape(8, 64, 56, 56, 256, 1),
    Shape(9, 128, 28, 28, 128, 3, 2, 1),
)


class Draw:
    """Random tensors on the CPU, from one seed."""

    def __init__(self, seed: str, kind: Kind) -> None:
        self._generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
        self.kind = kind

    def randn(self, *shape: int) -> Tensor:
        x = torch.randn(shape, generator=self._generator).to(self.kind.dtype)
        return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x

    def weight(self, k: int, c: int, r: int) -> Tensor:
        return (self.randn(k, c, r, r) / (c * r * r) ** 0.5).contiguous(memory_format=torch.channels_last)

    def batch_norm(self, channels: int) -> list[Any]:
        """gamma, beta, mean, var, eps."""
        ranges = ((0.5, 1.5), (-1.0, 1.0), (-1.0, 1.0), (0.5, 2.0))
        drawn = [torch.rand(channels, generator=self._generator) * (high - low) + low for low, high in ranges]
        return [*(v.to(self.kind.vectors) for v in drawn), EPS]


@dataclass(frozen=True)
class Problem:
    """One call. ``mode`` is the convolution's mode as in csrc/cuda, or distinguishes calls of the same op."""

    op: str
    mode: str
    shape: Shape
    kind_name: str
    draw_arguments: Callable[[Draw, Shape], list[Any]]

    @property
    def kind(self) -> Kind:
        return KINDS[self.kind_name]

    @property
    def name(self) -> str:
        return f"{self.op} {self.mode} {self.kind_name} {'-'.join(map(str, self.shape))}".replace("  ", " ")

    def arguments(self) -> list[Any]:
        """The arguments of the op's definition, on the CPU."""
        return self.draw_arguments(Draw(self.name, self.kind), self.shape)

    def options(self) -> list[bool]:
        """The op's further arguments: keep_packed and allow_tf32, allow_tf32 alone, or none."""
        if self.op == "conv_backward_reduce":
            return [self.kind.tf32]
        return [False, self.kind.tf32] if self.op in CONVOLUTIONS else []


def _conv(draw: Draw, s: Shape) -> list[Any]:
    bias = draw.randn(s.k)
    return [draw.randn(s.n, s.c, s.h, s.w), draw.weight(s.k, s.c, s.r), bias, *draw.batch_norm(s.k), *s.pairs(), 1]


def _plain(draw: Draw, s: Shape) -> list[Any]:
    return [*_conv(draw, s), None, True]


def _residual(draw: Draw, s: Shape) -> list[Any]:
    return [*_conv(draw, s), draw.randn(s.n, s.k, *s.out()), True]


def _prologue(draw: Draw, s: Shape) -> list[Any]:
    x, *rest = _conv(draw, s)
    return [x, *draw.batch_norm(s.c), *rest, draw.randn(s.n, s.k, *s.out()), False]


PROJECTED_CHANNELS, PROJECTED_STRIDE = 64, 2


def projected(s: Shape) -> list[int]:
    """The shape of a projection's input."""
    p, q = s.out()
    return [s.n, PROJECTED_CHANNELS, (p - 1) * PROJECTED_STRIDE + 1, q * PROJECTED_STRIDE]


def _projection(draw: Draw, s: Shape, pre: bool = False) -> list[Any]:
    projection = [
        draw.randn(*projected(s)),
        draw.weight(s.k, PROJECTED_CHANNELS, 1),
        draw.randn(s.k),
        *draw.batch_norm(s.k),
    ]
    pre_args = draw.batch_norm(PROJECTED_CHANNELS) if pre else [None, None, None, None, 0.0]
    return [*_conv(draw, s), *projection, [PROJECTED_STRIDE] * 2, *pre_args, True]


def _projection_prologue(draw: Draw, s: Shape) -> list[Any]:
    return _projection(draw, s, pre=True)


def _statistics(draw: Draw, s: Shape, pre: bool = False) -> list[Any]:
    pre_args = draw.batch_norm(s.c) if pre else [None, None, None, None, 0.0]
    return [draw.randn(s.n, s.c, s.h, s.w), *pre_args, draw.weight(s.k, s.c, s.r), None, *s.pairs(), 1]


def _prologue_statistics(draw: Draw, s: Shape) -> list[Any]:
    return _statistics(draw, s, pre=True)


def _gradient_sums(draw: Draw, s: Shape) -> list[Any]:
    """Backward through a convolution whose input gradient, as a forward convolution, has shape ``s``."""
    grad, weight = draw.randn(s.n, s.c, s.h, s.w), draw.weight(s.c, s.k, s.r)
    forward_padding = s.dilation * (s.r - 1) - s.padding
    x, bn = _away_from_zero(draw, (s.n, s.k, *s.out()))
    grad_addend = draw.randn(*x.shape)
    return [grad, weight, [forward_padding] * 2, [s.dilation] * 2, x, *bn, grad_addend]


def _block(draw: Draw, s: Shape) -> list[Any]:
    x = draw.randn(s.n, s.c, s.h, s.w)
    return [x, *(v for _ in range(2) for v in (draw.weight(s.c, s.c, 3), None, *draw.batch_norm(s.c)))]


def _away_from_zero(draw: Draw, shape: tuple[int, ...]) -> tuple[Tensor, list[Any]]:
    """An activation and a BatchNorm whose output has no element within :data:`RELU_MARGIN` of 0."""
    x, bn = draw.randn(*shape), draw.batch_norm(shape[1])
    gamma, beta, mean, var = (v.double()[:, None, None] for v in bn[:4])
    normalised = (x.double() - mean) * gamma / (var + EPS).sqrt() + beta
    x[normalised.abs() < RELU_MARGIN] = 4
    return x, bn


def _activation(s: Shape) -> tuple[int, int, int, int]:
    return s.n, s.c, s.h, s.w


def _add_act(draw: Draw, s: Shape) -> list[Any]:
    return [draw.randn(*_activation(s)), *draw.batch_norm(s.c), None, True]


def _add_act_residual(draw: Draw, s: Shape) -> list[Any]:
    return [draw.randn(*_activation(s)), *draw.batch_norm(s.c), draw.randn(*_activation(s)), True]


def _add_bn_act(draw: Draw, s: Shape) -> list[Any]:
    x, bn = draw.randn(*_activation(s)), draw.batch_norm(s.c)
    return [x, *bn, draw.randn(*_activation(s)), *draw.batch_norm(s.c), True]


def _stats(draw: Draw, s: Shape) -> list[Any]:
    return [draw.randn(*_activation(s)) + 3]


def _reduce(draw: Draw, s: Shape, mask: str = "recomputed") -> list[Any]:
    """``mask``: the ReLU mask is "recomputed" from x, read from the output "out", or absent ("none")."""
    x, bn = _away_from_zero(draw, _activation(s))
    out = draw.randn(*_activation(s)).relu() if mask == "out" else None
    return [draw.randn(*_activation(s)), x, *bn, out, mask != "none"]


def _add_reduce(draw: Draw, s: Shape) -> list[Any]:
    x, bn = _away_from_zero(draw, _activation(s))
    return [draw.randn(*_activation(s)), x, *bn, draw.randn(*_activation(s)).relu()]


def _backward(draw: Draw, s: Shape, mask: str = "recomputed") -> list[Any]:
    sums = [draw.randn(s.c).to(draw.kind.vectors) for _ in range(2)]
    return [*_reduce(draw, s, mask), *sums, float(s.n * s.h * s.w)]


POOL, WIDE_POOL = (
    [[3, 3], [2, 2], [1, 1]],
    [[5, 2], [1, 1], [2, 0]],
)  # the ResNet stem's window, and one without a fast kernel


def _whole_numbers(draw: Draw, s: Shape) -> tuple[Tensor, list[Any]]:
    """Integers and a BatchNorm that is exact in every dtype: many ties, and many zeros after the ReLU."""
    x = (draw.randn(*_activation(s)) * 2).round()
    ones = torch.ones(s.c, dtype=draw.kind.vectors)
    signs = torch.where(torch.arange(s.c) % 3 == 0, -1.0, 1.0).to(ones)
    eps = 2**-10  # var + eps is 4 in every dtype
    return x, [signs * 2, ones, -ones, 4 * ones - eps, eps]


def _pool(draw: Draw, s: Shape, pool: list[list[int]] = POOL) -> list[Any]:
    x, bn = _whole_numbers(draw, s)
    return [x, *bn, *pool]


def _pool_backward(draw: Draw, s: Shape, pool: list[list[int]] = POOL) -> list[Any]:
    x, _ = _whole_numbers(draw, s)
    (height, width), (stride_h, stride_w), (pad_h, pad_w) = pool
    out = (s.h + 2 * pad_h - height) // stride_h + 1, (s.w + 2 * pad_w - width) // stride_w + 1
    inside = pad_h * width + pad_w  # a position in the window that is never padding
    argmax = torch.where(draw.randn(s.n, s.c, *out) > 1, 255, inside).to(torch.uint8)  # 255: zeroed by the ReLU
    return [draw.randn(s.n, s.c, *out), argmax.contiguous(memory_format=torch.channels_last), x, *pool]


def _stem(draw: Draw, s: Shape, pool: list[list[int]] = POOL) -> list[Any]:
    return [*_conv(draw, s), *pool]


Arguments = Callable[[Draw, Shape], list[Any]]


def _in_nchw(arguments: Arguments) -> Arguments:
    """The same arguments in torch's default memory format."""

    def draw_arguments(draw: Draw, s: Shape) -> list[Any]:
        values = arguments(draw, s)
        return [v.contiguous() if isinstance(v, Tensor) else v for v in values]

    return draw_arguments


#: (op, mode) of the ops that plan a convolution.
CONV_MODES: dict[tuple[str, str], Arguments] = {
    ("conv_bn_act", "plain"): _plain,
    ("conv_bn_act", "residual"): _residual,
    ("bn_relu_conv_bn_act", "prologue"): _prologue,
    ("conv_bn_proj_act", "projection"): _projection,
    ("conv_bn_proj_act", "projection prologue"): _projection_prologue,
    ("conv_stats", "statistics"): _statistics,
    ("conv_stats", "prologue statistics"): _prologue_statistics,
    ("conv_backward_reduce", "gradient sums"): _gradient_sums,
}
_NHWC_PASSES: dict[tuple[str, str], tuple[Arguments, str]] = {
    ("bn_add_act", ""): (_add_act, "bn/bn_add_act"),
    ("bn_add_act", "residual"): (_add_act_residual, "bn/bn_add_act"),
    ("bn_add_bn_act", ""): (_add_bn_act, "bn/bn_add_act"),
    ("bn_stats", ""): (_stats, "bn/bn_stats"),
    ("bn_add_act_backward_reduce", ""): (_add_reduce, "bn/bn_backward_reduce"),
    **{
        (op, f"mask {mask}"): (partial(draw_arguments, mask=mask), file)
        for op, draw_arguments, file in (
            ("bn_act_backward_reduce", _reduce, "bn/bn_backward_reduce"),
            ("bn_act_backward", _backward, "bn/bn_backward"),
        )
        for mask in ("recomputed", "out", "none")
    },
}
_POOLING: dict[tuple[str, str], tuple[Arguments, str]] = {
    (op, window): (partial(draw_arguments, pool=pool), file)
    for op, draw_arguments, file in (
        ("bn_relu_max_pool", _pool, "pool/bn_pool"),
        ("bn_relu_max_pool_backward", _pool_backward, "pool/pool_backward"),
        ("conv_bn_relu_pool", _stem, "pool/bn_pool"),
    )
    for window, pool in (("3x3", POOL), ("5x2", WIDE_POOL))
}
#: (op, mode) of passes over activations -> arguments and the kernel's file in csrc/cuda. NCHW has separate kernels.
PASSES: dict[tuple[str, str], tuple[Arguments, str]] = {
    **_NHWC_PASSES,
    **{(op, f"{mode} NCHW".strip()): (_in_nchw(draw), file) for (op, mode), (draw, file) in _NHWC_PASSES.items()},
    **_POOLING,
}
CONVOLUTIONS = {op for op, _ in CONV_MODES} | {"basic_block", "conv_bn_relu_pool"}

#: Activation shapes: vectorised and not, and more channels than one thread block handles.
SMALL_ACTIVATIONS = (Shape(2, 64, 8, 11, 0, 1), Shape(3, 33, 5, 4, 0, 1), Shape(2, 2056, 3, 2, 0, 1))
LARGE_ACTIVATIONS = (Shape(32, 256, 28, 28, 0, 1), Shape(16, 64, 56, 57, 0, 1))
SMALL_STEMS = (Shape(2, 3, 20, 21, 16, 7, 2, 3), Shape(1, 3, 9, 11, 5, 7, 2, 3))
LARGE_STEMS = (Shape(16, 3, 224, 224, 64, 7, 2, 3),)
SMALL_BLOCKS = (Shape(2, 64, 9, 13, 64, 3, 1, 1), Shape(1, 128, 8, 9, 128, 3, 1, 1))
LARGE_BLOCKS = (Shape(33, 64, 56, 56, 64, 3, 1, 1), Shape(17, 128, 28, 28, 128, 3, 1, 1))


def convolutions(op: str, mode: str, kind: str, large: bool) -> list[Problem]:
    """Problems of one op and mode; conv_backward_reduce supports stride 1 only."""
    shapes = [s for s in (LARGE if large else SMALL) if op != "conv_backward_reduce" or s.stride == 1]
    return [Problem(op, mode, s, kind, CONV_MODES[op, mode]) for s in shapes]


def passes(op: str, mode: str, kind: str, large: bool) -> list[Problem]:
    """Problems of one op that is a pass over activations or ends with one."""
    shapes: tuple[Shape, ...]
    if op == "conv_bn_relu_pool":
        shapes = LARGE_STEMS if large else SMALL_STEMS
    else:
        shapes = LARGE_ACTIVATIONS if large else SMALL_ACTIVATIONS
    return [Problem(op, mode, s, kind, PASSES[op, mode][0]) for s in shapes]


def blocks(kind: str, large: bool) -> list[Problem]:
    """Problems for BasicBlocks with identity shortcut."""
    return [Problem("basic_block", "block", s, kind, _block) for s in (LARGE_BLOCKS if large else SMALL_BLOCKS)]
