"""sm80/conv_fwd and conv_finish on the emulator, which checks every access."""

from __future__ import annotations

import itertools

import pytest
import torch
from cuda_cases.batch_norm import batch_norm_kinds
from cuda_cases.convolution import (
    DTYPES,
    GEOMETRIES,
    TILES,
    assert_same_bits,
    by_dtype,
    check,
    check_nonfinite,
    convolution,
    deep_projection,
    identity,
    plant_nonfinite,
    randn,
    shifted_prologue,
    small_case,
)
from cuda_on_cpu.conv_fwd import AXES, MODES, Variant, run
from mutation import SCHEDULES, by_schedule

VARIANTS = [Variant(*v) for v in itertools.product(DTYPES, TILES, MODES)]

by_variant = pytest.mark.parametrize("v", VARIANTS, ids=str)


def test_compiled_variants_are_the_listed_ones(kernels):
    compiled = [Variant.of(v) for v in kernels.compiled_conv_fwd()]
    assert len(compiled) == len(set(compiled))
    # test_cuda_conv_stats.py tests those with statistics, test_cuda_gradient_sums.py those with gradient sums
    assert set(compiled) == {Variant(*v) for v in itertools.product(DTYPES, TILES, AXES)}


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
    assert 0 < vectors < 64 << 10  # the residual is read once; the rest is BatchNorm vectors


@by_variant
@by_schedule
def test_every_variant_with_split_depth(kernels, v, schedule):
    case = small_case(v, n=1)
    report = check(kernels, **case, splits=3, schedule=schedule)
    elements = case["conv"].output_shape()[1] * case["conv"].output_shape()[2] * case["conv"].output_shape()[3]
    slices = 3 + ("projection" in case)
    assert report["bytes_stored"] == elements * (v.dtype.itemsize + 4 * slices)


@by_dtype
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_geometries(kernels, dtype, geometry):
    check(kernels, (64, 64), convolution(dtype, *geometry))


@by_dtype
@pytest.mark.parametrize("geometry", ["1x1, stride 2", "3x3, stride 2", "3x3, dilation 2", "padding past the filter"])
@by_schedule
def test_prologue_keeps_padding_zero(kernels, dtype, geometry, schedule):
    """Padding stays zero, although BatchNorm and ReLU turn a zero input into relu(shift)."""
    conv = shifted_prologue(convolution(dtype, *GEOMETRIES[geometry], prologue=True))
    check(kernels, (64, 64), conv, schedule=schedule)


@by_schedule
def test_deep_prologue(kernels, schedule):
    """Many more main-loop steps than pipeline stages."""
    conv = convolution(torch.bfloat16, 1, 128, 8, 8, 64, 3, 3, 1, 1, prologue=True)
    residual = randn(conv.output_shape(), torch.bfloat16, 9)
    check(kernels, (128, 64), conv, residual=residual, schedule=schedule)


@by_dtype
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("prologue", [False, True], ids=["projection", "prologue"])
def test_projection_is_deeper_than_main(kernels, dtype, prologue, splits):
    check(kernels, **deep_projection(dtype, (64, 64), prologue=prologue), splits=splits)


@by_dtype
@pytest.mark.parametrize("c", [8, 16, 24, 64, 72, 200])
def test_channel_counts(kernels, dtype, c):
    for prologue in (False, True):
        check(kernels, (64, 64), convolution(dtype, 1, c, 5, 6, 24, 3, 3, 1, 1, prologue=prologue))


@by_dtype
@pytest.mark.parametrize("splits", [2, 4, 7])
def test_unequal_splits(kernels, dtype, splits):
    """Split-K with slices of unequal length."""
    conv = convolution(dtype, 1, 128, 7, 7, 64, 3, 3, 1, 1)
    check(kernels, (64, 64), conv, residual=randn(conv.output_shape(), dtype, 9), splits=splits)


@by_dtype
def test_split_sum_is_deterministic(kernels, dtype):
    conv = convolution(dtype, 1, 64, 7, 7, 64, 3, 3, 1, 1)
    order = [dict(schedule=s, seed=seed) for s in SCHEDULES for seed in (1, 2)]
    assert_same_bits([[run(kernels, (64, 64), conv, splits=4, **how)[0]] for how in order])


@by_dtype
@pytest.mark.parametrize("splits", [1, 3])
def test_batch_norm_kinds(kernels, dtype, splits):
    """Absent vectors, a bias, strides, vectors in x's dtype, zero gamma and zero variance."""
    conv = convolution(dtype, 1, 16, 6, 6, 32, 3, 3, 1, 1)
    bn, bias = conv.bn, torch.linspace(-1, 1, 32)
    others = [bn._replace(gamma=None, beta=None), bn._replace(bias=bias), bn._replace(var=torch.zeros(32))]
    for kind in [*batch_norm_kinds(32, dtype), *others]:
        for relu in (True, False):
            check(kernels, (64, 64), conv._replace(bn=kind), relu=relu, splits=splits)


@by_dtype
@pytest.mark.parametrize("mode", MODES)
def test_nonfinite_values(kernels, dtype, mode):
    """NaN and Inf in x, the weights or the shortcut."""
    for where in ("x", "weight", "shortcut"):
        case = small_case(Variant(dtype, (64, 64), mode), n=1)
        target = {"x": case["conv"].x, "weight": case["conv"].weight}.get(where)
        if target is None:
            target = case["residual"] if "residual" in case else case["projection"].x
        plant_nonfinite(target)
        check_nonfinite(kernels, case)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_result_is_rounded_once(kernels, dtype):
    """With identity weights and no BatchNorm, the output is x + residual, rounded once."""
    conv, residual = identity(dtype, 8, 8), randn((1, 64, 8, 8), dtype, 1)
    out, _ = run(kernels, (64, 64), conv, residual=residual, relu=False)
    torch.testing.assert_close(out, (conv.x.float() + residual.float()).to(dtype), rtol=0, atol=0)


def test_empty_output_launches_nothing(kernels):
    conv = convolution(torch.bfloat16, 1, 8, 4, 4, 8, 3, 3)._replace(x=torch.empty(0, 8, 4, 4, dtype=torch.bfloat16))
    out, report = run(kernels, (64, 64), conv)
    assert (out.numel(), report["errors"]) == (0, [])
