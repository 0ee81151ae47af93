"""Convolutions for the emulated kernels, their eager references, and checks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from cuda_on_cpu.conv_fwd import Conv, Variant, run, run_statistics
from cuda_on_cpu.tensors import BatchNorm

from resnet_fused import criterion, reference

from .batch_norm import batch_norm

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
TILES = [(128, 128), (128, 64), (64, 64)]  # of sm80/conv_fwd
# Pixels per tile -> image size. Three such images have two tiles or more, and the last tile is partly filled, with a
# partly filled row of warps.
SIZES = {64: (6, 7), 128: (10, 9), 256: (13, 12)}

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_nonfinite = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)

# n, c, h, w, k, r, s, stride, padding, dilation
GEOMETRIES = {
    "1x1": (2, 72, 5, 7, 40, 1, 1),
    "1x1, ragged channels": (2, 128, 5, 7, 72, 1, 1),
    "1x1, stride 2": (2, 64, 9, 8, 64, 1, 1, 2),
    "3x3, stride 2": (2, 16, 13, 11, 24, 3, 3, 2, 1),
    "3x3, dilation 2": (1, 32, 9, 10, 16, 3, 3, 1, 2, 2),
    "3x3, no padding": (2, 8, 6, 6, 8, 3, 3),
    "7x7, stride 2": (1, 8, 17, 15, 64, 7, 7, 2, 3),
    "5x3, each axis its own": (2, 8, 14, 11, 16, 5, 3, (3, 2), (2, 1), (1, 3)),
    "1x7": (1, 16, 5, 16, 8, 1, 7, 1, (0, 3)),
    "padding past the filter": (1, 8, 4, 4, 8, 3, 3, 1, 3),
    "one pixel": (1, 8, 1, 1, 8, 3, 3, 1, 1),
    "filter larger than the image": (2, 8, 3, 3, 8, 7, 7, 1, 3),
    "widest filter": (1, 8, 18, 2, 8, 16, 1, 1, 0),
    "deep": (1, 512, 3, 3, 16, 3, 3, 1, 1),
}


def randn(shape, dtype, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def convolution(dtype, n, c, h, w, k, r, s, stride=1, padding=0, dilation=1, seed=0, prologue=False, **bn) -> Conv:
    x = randn((n, c, h, w), dtype, seed)
    weight = randn((k, c, r, s), torch.float32, seed + 1).div_((c * r * s) ** 0.5).to(dtype)
    pairs = ((v, v) if isinstance(v, int) else v for v in (stride, padding, dilation))
    pre = batch_norm(c, seed=seed + 2) if prologue else None
    return Conv(x, weight, batch_norm(k, seed=seed + 3, **bn), *pairs, pre)


def raw_convolution(*args, bias=None, **options) -> Conv:
    return convolution(*args, **options)._replace(bn=BatchNorm(bias=bias))


def identity(dtype, h, w, channels=64) -> Conv:
    """A 1x1 convolution that copies its input, without a BatchNorm."""
    weight = torch.eye(channels, dtype=dtype)[:, :, None, None].contiguous(memory_format=torch.channels_last)
    return Conv(randn((1, channels, h, w), dtype, 0), weight)


def shifted_prologue(conv: Conv) -> Conv:
    """A prologue that maps zero to about 3, so that wrongly normalised padding is detected."""
    return conv._replace(pre=conv.pre._replace(beta=conv.pre.beta + 3))


def small_convolution(v: Variant, n=3, c=24, *, make=convolution, **options) -> Conv:
    """At least two tiles along pixels and channels; pixels, channels and depth are all ragged."""
    return make(v.dtype, n, c, *SIZES[v.tile[0]], v.tile[1] + 8, 3, 3, padding=1, **options)


def small_case(v: Variant, n=3, c=24, projected=40) -> dict:
    """``small_convolution`` with what the mode needs: a prologue, a residual, or a projection with stride 2."""
    conv = small_convolution(v, n, c, prologue=v.mode == "prologue")
    case = dict(tile=v.tile, conv=conv)
    if v.mode.startswith("projection"):
        (h, w), prologue = conv.output_shape()[2:], v.mode.endswith("prologue")
        size = (n, projected, 2 * h - 1, 2 * w)
        case["projection"] = convolution(v.dtype, *size, v.tile[1] + 8, 1, 1, 2, seed=10, prologue=prologue)
    else:
        case["residual"] = randn(conv.output_shape(), v.dtype, 20)
    return case


def deep_projection(dtype, tile, c=24, projected=200, prologue=False) -> dict:
    """A 1x1 convolution with a projection of more input channels, as in the first block of a bottleneck stage."""
    k = tile[1] + 8
    projection = convolution(dtype, 1, projected, 11, 14, k, 1, 1, 2, seed=10, prologue=prologue)
    return dict(tile=tile, conv=convolution(dtype, 1, c, 6, 7, k, 1, 1), projection=projection)


def tf32(t):
    """Rounds finite values to TF32, as eager's convolution does if TF32 is allowed."""
    return torch.where(torch.isfinite(t), criterion.tf32(t), t)


def eager(conv, residual=None, projection=None, relu=True, dtype=None):
    """The same computation in eager PyTorch, in ``dtype`` (default: the input's).

    Padding is explicit: the kernels multiply it like any other zero, so an infinite weight gives NaN.
    """
    dtype = dtype or conv.x.dtype

    def cast(t):
        return None if t is None else t.to(dtype)

    def vectors(bn):
        # eager accepts a float32 BatchNorm with half-precision activations, but not with float64
        return [v if v is None or dtype != torch.float64 else v.double() for v in bn[:4]]

    x, weight = cast(conv.x), cast(conv.weight)
    if conv.pre is not None:
        x = reference.bn_add_act(x, *vectors(conv.pre), conv.pre.eps, None, True)
    if dtype == torch.float32:
        x, weight = tf32(x), tf32(weight)
    if projection is not None:
        residual = eager(projection, relu=False, dtype=dtype)
    (pad_h, pad_w), geometry = conv.padding, (list(conv.stride), [0, 0], list(conv.dilation), 1)
    x = F.pad(x, (pad_w, pad_w, pad_h, pad_h)).contiguous(memory_format=torch.channels_last)
    bn = (*vectors(conv.bn), conv.bn.eps)
    return reference.conv_bn_act(x, weight, cast(conv.bn.bias), *bn, *geometry, cast(residual), relu)


def check(kernels, tile, conv, *, residual=None, projection=None, relu=True, **options):
    out, report = run(kernels, tile, conv, residual=residual, projection=projection, relu=relu, **options)
    assert report["errors"] == []
    args = (conv, residual, projection)
    truth = eager(*args, relu, torch.float64)
    assert_close(out, eager(*args, relu), truth, eager(*args, False, torch.float64))
    return report


def check_nonfinite(kernels, case, **options):
    """Inf and NaN are in the same places as in eager's output."""
    out, report = run(kernels, **case, **options)
    assert report["errors"] == []
    assert_same_nonfinite(out, eager(case["conv"], case.get("residual"), case.get("projection")))


def assert_same_nonfinite(out, want):
    assert torch.equal(torch.isnan(out), torch.isnan(want))
    assert torch.equal(torch.isinf(out), torch.isinf(want))


def plant_nonfinite(*tensors):
    for t in tensors:
        t[0, 3, 0, 0], t[0, 5, -1, -1] = torch.nan, torch.inf


def check_statistics(kernels, tile, conv, **options):
    out, moments, report = run_statistics(kernels, tile, conv, **options)
    assert report["errors"] == []
    assert_close(out, eager(conv, relu=False), eager(conv, relu=False, dtype=torch.float64))
    check_moments(out, moments)
    return report


def check_moments(out, moments):
    """Compares the moments with those of the stored output, independent of the output's own error."""
    for a, e, t in zip(moments, reference.bn_stats(out), reference.bn_stats(out.double()), strict=True):
        assert_close(a, e, t)


def assert_same_bits(runs):
    """All lists of tensors are bit-identical."""
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
