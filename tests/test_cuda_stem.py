"""conv_bn_relu_pool of csrc/cuda/ops/conv.cpp on CPU tensors: a convolution, then one emulated pooling kernel."""

from __future__ import annotations

import pytest
import torch
from cuda_cases.op_layer import ENGINES, batch_norm, by_dtype, check, check_refusals, randn
from gpu_case import by_format

from resnet_fused import ops, reference

IMAGENET = ([7, 7], 2, 3, [3, 3], [2, 2], [1, 1])  # filter, stride, padding; the pooling's window, stride, padding


def stem(x, k, geometry=IMAGENET, *, biased=False, normed=True):
    """Returns the op's arguments, up to and including the pooling's."""
    r, stride, padding, *pool = geometry
    weight = (randn(k, x.shape[1], *r) / (x.shape[1] * r[0] * r[1]) ** 0.5).to(x.dtype)
    bias = randn(k, dtype=x.dtype) if biased else None
    bn = batch_norm(k, torch.float64 if x.dtype is torch.float64 else torch.float32)
    bn = bn if normed else [None] * 4 + [0.0]
    return [x, weight, bias, *bn, [stride] * 2, [padding] * 2, [1, 1], 1, *pool]


def in_channels_last(x, *args):
    """The definition of the stem, computed in channels_last; the output has x's format.

    With AVX512-BF16 torch multiplies pairs of channels, and an odd channel by 0: Inf gives NaN, at positions that
    depend on the memory format. The op convolves in channels_last.
    """
    y = reference.conv_bn_relu_pool(x.contiguous(memory_format=torch.channels_last), *args)
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    return y if is_last else y.contiguous()


def check_stem(on, args, kernels=(), tf32=False, definition=reference.conv_bn_relu_pool):
    """Checks values, memory format and launches: torch's convolution or ``kernels``, then one pooling kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        on.conv_bn_relu_pool(*args, False, tf32)
    assert sum(event.name == "aten::convolution" for event in profile.events()) == (not kernels)
    check(on.conv_bn_relu_pool, definition, args, tf32)
    for report in on.reports[-2:]:
        assert [name.split("<")[0] for name in report["launched"]] == [*kernels, "bn_pool_kernel"]


@by_dtype
@by_format
@pytest.mark.parametrize("size", [(12, 12), (13, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("k", [64, 5])
def test_imagenet_stem(layer, dtype, memory_format, size, k):
    """Three channels use torch's convolution with every engine; the pooling kernel applies BatchNorm and ReLU."""
    x = randn(2, 3, *size, dtype=dtype, memory_format=memory_format)
    for engine in ("", "sm90"):
        check_stem(layer("h200", engine), stem(x, k))


@by_dtype
@pytest.mark.parametrize("normed", [False, True])
def test_bias(layer, dtype, normed):
    x = randn(2, 3, 11, 10, dtype=dtype)
    check_stem(layer(), stem(x, 16, biased=True, normed=normed))


# window, stride, padding: different for rows and columns; no overlap; gaps; windows that cover all rows of the image
WINDOWS = [
    ([2, 3], [1, 2], [1, 0]),
    ([2, 2], [2, 2], [0, 0]),
    ([3, 3], [5, 4], [1, 1]),
    ([40000, 1], [1, 1], [20000, 0]),
]


@by_dtype
@by_format
@pytest.mark.parametrize("pool", WINDOWS, ids=str)
def test_pooling_windows(layer, dtype, memory_format, pool):
    x = randn(2, 3, 8, 9, dtype=dtype, memory_format=memory_format)
    check_stem(layer(), stem(x, 8, ([3, 3], 1, 1, *pool)))


def test_window_of_more_than_255_elements(layer):
    """17 x 17 elements. Training rejects this, because it stores each argmax in a byte."""
    x = randn(1, 3, 20, 19, dtype=torch.float16)
    check_stem(layer(), stem(x, 8, ([3, 3], 1, 1, [17, 17], [2, 3], [8, 4])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@by_format
@pytest.mark.parametrize(("gpu", "engine", "last"), ENGINES[1:4], ids=[f"{g}-{e}" for g, e, _ in ENGINES[1:4]])
def test_convolution_by_our_kernels(layer, dtype, memory_format, gpu, engine, last):
    """With 64 channels the convolution's epilogue applies BatchNorm and ReLU, and the pooling kernel does not."""
    x = randn(2, 64, 9, 7, dtype=dtype, memory_format=memory_format)
    args = stem(x, 72, ([3, 3], 1, 1, *IMAGENET[3:]), biased=True)
    kernels = ["conv_fwd_kernel", last] if last == "conv_finish_kernel" else [last]
    check_stem(layer(gpu, engine), args, kernels)


@by_dtype
@by_format
def test_nonfinite_values(layer, dtype, memory_format):
    """NaN and Inf in the image and in BatchNorm's vectors, in windows that also hold finite values."""
    x = randn(2, 3, 17, 15, dtype=dtype, memory_format=memory_format)
    x[0, 0, 3, 4], x[1, 1, 12, 2], x[1, 2, 2, 12] = torch.nan, torch.inf, -torch.inf
    args = stem(x, 16)
    args[3][0], args[4][1], args[4][2], args[6][3] = torch.nan, torch.inf, -torch.inf, torch.inf
    check_stem(layer(), args, definition=in_channels_last)
    out = layer().conv_bn_relu_pool(*args, False, False)
    assert out[:, 0].isnan().all()
    assert out[0, 4].isnan().any()
    assert not out[0, 4].isnan().all()


@pytest.mark.parametrize(("gpu", "engine", "last"), ENGINES[:2])
@by_format
def test_empty_batch(layer, gpu, engine, last, memory_format):
    for c in (3, 64):
        x = torch.empty(0, c, 12, 12, dtype=torch.float16).contiguous(memory_format=memory_format)
        on = layer(gpu, engine)
        out = on.conv_bn_relu_pool(*stem(x, 64), False, False)
        assert out.shape == (0, 64, 3, 3)
        assert out.dtype == x.dtype
        assert on.reports[-1]["launched"] == []


def test_views(layer):
    """Every second pixel, an expanded image, a misaligned address."""
    base = randn(2, 3, 24, 26, dtype=torch.bfloat16)
    args = stem(base, 8)
    flat = randn(1 + base.numel(), dtype=torch.bfloat16)
    for x in (base[:, :, ::2, 1::2], base[:1].expand(2, -1, -1, -1), flat[1:].view(base.shape)):
        check_stem(layer(), [x, *args[1:]])


@pytest.mark.parametrize("schedule", ["rotate", "random"])
def test_other_schedules(layer, schedule):
    x = randn(2, 3, 12, 12, dtype=torch.bfloat16, memory_format=torch.channels_last)
    check_stem(layer("a100", "", schedule), stem(x, 64))


def test_errors_match_the_cpu_op(layer):
    args = stem(randn(1, 3, 12, 12), 8)
    pools = (([3, 3], [2, 2], [2, 2]), ([9, 9], [1, 1], [1, 1]), ([3, 3], [0, 1], [1, 1]))
    check_refusals(layer().conv_bn_relu_pool, ops.conv_bn_relu_pool, [(*args[:-3], *p, False, False) for p in pools])
