"""sm80/conv_fwd and conv_finish, run thread by thread on the CPU with every access checked."""

from __future__ import annotations

import itertools

import cuda_on_cpu
import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from cuda_on_cpu.conv_fwd import ALL_MODES, MODES, Conv, Variant, run
from cuda_on_cpu.tensors import BatchNorm
from planting import SCHEDULES

from resnet_fused import reference

if reason := cuda_on_cpu.missing():
    pytest.skip(f"the kernel emulator needs a compiler: {reason}", allow_module_level=True)

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
TILES = [(128, 128), (128, 64), (64, 64)]
VARIANTS = [Variant(*v) for v in itertools.product(DTYPES, TILES, MODES)]

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
by_variant = pytest.mark.parametrize("v", VARIANTS, ids=str)


@pytest.fixture(scope="module")
def kernels():
    return cuda_on_cpu.load()


def randn(shape, dtype, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def batch_norm(c, seed, dtype=torch.float32, **changes):
    g = torch.Generator().manual_seed(seed)
    bounds = [(0.5, 1.5), (-1, 1), (-1, 1), (0.5, 2)]
    bn = BatchNorm(*((torch.rand(c, generator=g) * (high - low) + low).to(dtype) for low, high in bounds))
    return bn._replace(**changes)


def convolution(dtype, n, c, h, w, k, r, s, stride=1, padding=0, dilation=1, seed=0, prologue=False, **bn) -> Conv:
    x = randn((n, c, h, w), dtype, seed)
    weight = randn((k, c, r, s), torch.float32, seed + 1).div_((c * r * s) ** 0.5).to(dtype)
    pairs = ((v, v) if isinstance(v, int) else v for v in (stride, padding, dilation))
    pre = batch_norm(c, seed + 2) if prologue else None
    return Conv(x, weight, batch_norm(k, seed + 3, **bn), *pairs, pre)


def tf32(t):
    """Rounded to 10 bits of fraction, ties away from zero: what eager's convolution multiplies with TF32 allowed."""
    bits = t.view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return torch.where(torch.isfinite(t), rounded, t)


def eager(conv, residual=None, projection=None, relu=True, dtype=None):
    """The same in eager PyTorch; in float64 if dtype says so.

    Padding is explicit, because on a GPU it is multiplied like any zero: an infinite weight makes it NaN.
    """
    dtype = dtype or conv.x.dtype

    def cast(t):
        return None if t is None else t.to(dtype)

    def vectors(bn):
        # eager takes a float32 BatchNorm under half-precision activations, and none under float64
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


def small_case(v: Variant, n=3) -> dict:
    """Two tiles of pixels and of channels, ragged in every direction: pixels, channels, depth."""
    h, w = (10, 9) if v.tile[0] == 128 else (6, 7)
    k = v.tile[1] + 8
    conv = convolution(v.dtype, n, 24, h, w, k, 3, 3, padding=1, prologue=v.mode == "prologue")
    case = dict(tile=v.tile, conv=conv)
    if v.mode.startswith("projection"):
        case["projection"] = convolution(
            v.dtype, n, 40, 2 * h - 1, 2 * w, k, 1, 1, 2, seed=10, prologue=v.mode.endswith("prologue")
        )
    else:
        case["residual"] = randn(conv.output_shape(), v.dtype, 20)
    return case


def test_the_menu_is_what_is_compiled(kernels):
    compiled = [Variant.of(raw) for raw in kernels.compiled_conv_fwd()]
    assert len(compiled) == len(set(compiled))
    # those with statistics are test_cuda_conv_stats.py's, those of gradients test_cuda_gradient_sums.py's
    assert set(compiled) == {Variant(*v) for v in itertools.product(DTYPES, TILES, ALL_MODES)}


@by_variant
@by_schedule
def test_every_variant(kernels, v, schedule):
    case = small_case(v)
    report = check(kernels, **case, schedule=schedule)
    out = case["conv"].output_shape()
    size = out[0] * out[1] * out[2] * out[3] * v.dtype.itemsize
    assert report["bytes_stored"] == size  # each output once
    residual = size if v.mode in ("plain", "prologue") else 0
    vectors = report["bytes_loaded"] - report["bytes_copied"] - residual
    assert 0 < vectors < 64 << 10  # the residual once; what else is read so are the BatchNorms


@by_variant
@by_schedule
def test_every_variant_split(kernels, v, schedule):
    case = small_case(v, n=1)
    report = check(kernels, **case, splits=3, schedule=schedule)
    elements = case["conv"].output_shape()[1] * case["conv"].output_shape()[2] * case["conv"].output_shape()[3]
    slices = 3 + ("projection" in case)
    assert report["bytes_stored"] == elements * (v.dtype.itemsize + 4 * slices)


# n, c, h, w, k, r, s, stride, padding, dilation
GEOMETRIES = {
    "1x1": (2, 72, 5, 7, 40, 1, 1),
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


@by_dtype
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_geometries(kernels, dtype, geometry):
    check(kernels, (64, 64), convolution(dtype, *geometry))


@by_dtype
@pytest.mark.parametrize("geometry", ["1x1, stride 2", "3x3, stride 2", "3x3, dilation 2", "padding past the filter"])
@by_schedule
def test_prologue_geometries(kernels, dtype, geometry, schedule):
    """Padding stays zero after BatchNorm and ReLU, whatever they make of a zero."""
    conv = convolution(dtype, *GEOMETRIES[geometry], prologue=True)
    shifted = conv.pre._replace(beta=conv.pre.beta + 3)
    check(kernels, (64, 64), conv._replace(pre=shifted), schedule=schedule)


@by_dtype
@pytest.mark.parametrize("c", [8, 16, 24, 64, 72, 200])
def test_channel_counts(kernels, dtype, c):
    for prologue in (False, True):
        check(kernels, (64, 64), convolution(dtype, 1, c, 5, 6, 24, 3, 3, 1, 1, prologue=prologue))


@by_dtype
@pytest.mark.parametrize("splits", [2, 4, 7])
def test_splits(kernels, dtype, splits):
    """7x7 pixels of 128 channels: the depth, in parts of unequal length."""
    conv = convolution(dtype, 1, 128, 7, 7, 64, 3, 3, 1, 1)
    check(kernels, (64, 64), conv, residual=randn(conv.output_shape(), dtype, 9), splits=splits)


@by_dtype
def test_a_split_sum_is_the_same_in_every_order_of_blocks(kernels, dtype):
    conv = convolution(dtype, 1, 64, 7, 7, 64, 3, 3, 1, 1)
    runs = [run(kernels, (64, 64), conv, splits=4, schedule=s, seed=seed)[0] for s in SCHEDULES for seed in (1, 2)]
    assert all(torch.equal(r, runs[0]) for r in runs)


@by_dtype
@pytest.mark.parametrize("splits", [1, 3])
def test_batch_norms_of_every_kind(kernels, dtype, splits):
    """Absent vectors, a bias, strides, vectors in x's dtype, zero gamma, zero variance."""
    conv = convolution(dtype, 1, 16, 6, 6, 32, 3, 3, 1, 1)
    bn = conv.bn
    wide = batch_norm(64, 5)
    kinds = [
        BatchNorm(),
        BatchNorm(bias=torch.linspace(-1, 1, 32).to(dtype)),
        bn._replace(gamma=None, beta=None),
        bn._replace(bias=torch.linspace(-1, 1, 32)),
        BatchNorm(*(v[::2] for v in wide[:4])),
        bn._replace(gamma=torch.zeros(32)),
        bn._replace(var=torch.zeros(32)),
    ]
    if dtype != torch.float32:
        kinds.append(batch_norm(32, 6, dtype))
    for kind in kinds:
        for relu in (True, False):
            check(kernels, (64, 64), conv._replace(bn=kind), relu=relu, splits=splits)


@by_dtype
@pytest.mark.parametrize("mode", MODES)
def test_nonfinite_values(kernels, dtype, mode):
    """Inf and NaN come out where eager has them: in x, the weights, and the shortcut."""
    for where in ("x", "weight", "shortcut"):
        case = small_case(Variant(dtype, (64, 64), mode), n=1)
        target = {"x": case["conv"].x, "weight": case["conv"].weight}.get(where)
        if target is None:
            target = case["residual"] if "residual" in case else case["projection"].x
        target[0, 3, 0, 0], target[0, 5, -1, -1] = torch.nan, torch.inf
        out, report = run(kernels, **case)
        assert report["errors"] == []
        want = eager(case["conv"], case.get("residual"), case.get("projection"))
        assert torch.equal(torch.isnan(out), torch.isnan(want))
        assert torch.equal(torch.isinf(out), torch.isinf(want))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_one_rounding(kernels, dtype):
    """Identity weights, no BatchNorm: the exact sum with the residual, rounded once."""
    x = randn((1, 64, 8, 8), dtype, 0)
    weight = torch.eye(64, dtype=dtype)[:, :, None, None].contiguous(memory_format=torch.channels_last)
    residual = randn((1, 64, 8, 8), dtype, 1)
    out, _ = run(kernels, (64, 64), Conv(x, weight), residual=residual, relu=False)
    torch.testing.assert_close(out, (x.float() + residual.float()).to(dtype), rtol=0, atol=0)


def test_an_absent_output_launches_nothing(kernels):
    conv = convolution(torch.bfloat16, 1, 8, 4, 4, 8, 3, 3)._replace(x=torch.empty(0, 8, 4, 4, dtype=torch.bfloat16))
    out, report = run(kernels, (64, 64), conv)
    assert (out.numel(), report["errors"]) == (0, [])
