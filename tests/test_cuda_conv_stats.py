"""sm80/conv_fwd with statistics on the emulator: the pre-BN output, and the moments of the stored values."""

from __future__ import annotations

import itertools

import pytest
import torch
from criterion import assert_close
from cuda_cases.convolution import (
    DTYPES,
    GEOMETRIES,
    TILES,
    assert_same_bits,
    by_dtype,
    by_nonfinite,
    check_statistics,
    identity,
    raw_convolution,
    small_convolution,
)
from cuda_on_cpu.conv_fwd import STATISTICS, Variant, is_mode, run_statistics
from mutation import SCHEDULES, by_schedule, each_mutation, fails, mutations_of, order, value

from resnet_fused import reference

VARIANTS = [Variant(*v) for v in itertools.product(DTYPES, TILES, STATISTICS)]
by_variant = pytest.mark.parametrize("v", VARIANTS, ids=str)


@by_variant
@by_schedule
def test_every_variant(kernels, v, schedule):
    conv = small_convolution(v, make=raw_convolution, prologue=v.mode.startswith("prologue"))
    report = check_statistics(kernels, v.tile, conv, schedule=schedule)
    n, k, p, q = conv.output_shape()
    parts = -(-n * p * q // v.tile[0])
    assert report["bytes_stored"] == n * k * p * q * v.dtype.itemsize + parts * 3 * k * 4


@by_dtype
@pytest.mark.parametrize("geometry", ["1x1", "1x1, stride 2", "3x3, stride 2", "one pixel", "deep"])
def test_geometries(kernels, dtype, geometry):
    for prologue in (False, True):
        check_statistics(kernels, (64, 64), raw_convolution(dtype, *GEOMETRIES[geometry], prologue=prologue))


@by_dtype
def test_bias_does_not_cost_precision(kernels, dtype):
    """A mean of up to 300 standard deviations causes no cancellation."""
    bias = torch.linspace(100, 300, 24)
    conv = raw_convolution(dtype, 5, 16, 9, 9, 24, 3, 3, 1, 1, bias=bias)
    out, moments, report = run_statistics(kernels, (128, 64), conv)
    assert report["errors"] == []
    for a, t in zip(moments, reference.bn_stats(out.double()), strict=True):
        torch.testing.assert_close(a.double(), t, rtol=2**-20, atol=0)


@by_dtype
def test_mean_far_from_zero_does_not_cost_precision(kernels, dtype):
    """With fewer pixels than the 16 rows whose mean is the center."""
    conv = identity(dtype, 2, 4)
    conv.x.mul_(20).add_(3000)
    conv.weight.mul_(0.7)  # makes sums of float32 outputs inexact
    out, moments, report = run_statistics(kernels, (64, 64), conv)
    assert report["errors"] == []
    for a, t in zip(moments, reference.bn_stats(out.double()), strict=True):
        torch.testing.assert_close(a.double(), t, rtol=2**-20, atol=0)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_mean_near_zero_meets_the_criterion(kernels, tile):
    """Sums of distances from a center far from the mean would lose float32 digits.

    The limit leaves out eager's own error, which is smaller on GPUs than on CPUs.
    """
    conv = raw_convolution(torch.float32, 2, 8, 14, 14, 512, 1, 1)
    out, moments, report = run_statistics(kernels, tile, conv)
    assert report["errors"] == []
    for a, t in zip(moments, reference.bn_stats(out.double()), strict=True):
        assert_close(a, t.float(), t)


@by_dtype
@by_nonfinite
def test_statistics_of_nonfinite_values(kernels, dtype, value):
    """A 1x1 filter spreads the value to all channels of a pixel: first of a tile, first of its second half, another."""
    for pixel in (0, 32, 41):
        conv = raw_convolution(dtype, 1, 16, 6, 12, 24, 1, 1)
        conv.x.permute(0, 2, 3, 1).reshape(72, 16)[pixel] = 0
        conv.x[0, 3, pixel // 12, pixel % 12] = value
        conv.weight[:, 3] = conv.weight[:, 3].abs() + 0.1
        out, moments, report = run_statistics(kernels, (64, 64), conv)
        assert report["errors"] == []
        for a, e in zip(moments, reference.bn_stats(out), strict=True):
            torch.testing.assert_close(a, e, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_finish_merges_many_parts(kernels):
    """More parts than one CTA of bn_finish can add."""
    conv = raw_convolution(torch.bfloat16, 17, 8, 64, 62, 8, 1, 1)
    check_statistics(kernels, (64, 64), conv)


def test_sums_are_deterministic(kernels):
    conv = raw_convolution(torch.bfloat16, 2, 16, 12, 12, 72, 3, 3, 1, 1)
    order = [dict(schedule=s, seed=seed) for s in SCHEDULES for seed in (1, 2)]
    assert_same_bits([run_statistics(kernels, (64, 64), conv, **how)[1] for how in order])


MOMENTS, PARTS, FINISH, FOLD = (
    "cuda/kernels/sm80/conv_moments.cuh",
    "cuda/kernels/sm80/conv_parts.cuh",
    "cuda/kernels/bn/bn_finish.cuh",
    "cuda/kernels/bn/fold.cuh",
)
MOMENT_MUTATIONS = {
    "no barrier before the exchange is read": order(PARTS, "    ptx::bar_sync_all();\n", ""),
    "a slab overwritten while it is read": order(
        MOMENTS, "      ptx::bar_warp_sync(~0u);  // before the next", "      //"
    ),
    "a slab read before it is written": order(
        MOMENTS,
        "slab.write(main.sum[i], place.lane);\n      ptx::bar_warp_sync(~0u);",
        "slab.write(main.sum[i], place.lane);",
    ),
    "lower warp counts rows past the end": value(MOMENTS, "left < 0 ? 0 : left < most ? left : most", "most"),
    "lower warp's moments not added": value(MOMENTS, "    if (count > 0) {", "    if (count > 1e9f) {"),
    "lower warp's center ignored": value(MOMENTS, "theirs[0][e] - center[e], distances", "0.f, distances"),
    "warp reduction stops one step early": value(PARTS, "by = kLanesARow; by < 32;", "by = kLanesARow; by < 16;"),
    "moments of unrounded values": value(MOMENTS, "stored.get(e), center[e]);", "v[e], center[e]);"),
    "infinite center accepted": value(MOMENTS, "is_finite(rounded.get(e)) ?", "true ?"),
    "two parts share a workspace slot": order(PARTS, "(m0 / Config::kM)", "(m0 / Config::kM / 2)"),
    "bias not added": value(MOMENTS, "v[e] = add_bias.apply(v[e], e);", "v[e] += 0;"),
}
CENTER_MUTATIONS = {
    "center is always zero": value(MOMENTS, "center[e] += stored.get(e);", "center[e] += 0;"),
    "center includes rows past the end": value(MOMENTS, "kRowsAPass >= pixels) continue;", "kRowsAPass < 0) continue;"),
}
FINISH_MUTATIONS = {
    "last part counted at full length": value(FINISH, "left < parts.each ? left : parts.each", "parts.each"),
    "every second leftover part skipped": value(FINISH, "part += kFinishRows) {", "part += 2 * kFinishRows) {"),
    "squares re-centered with half the cross term": value(
        FINISH, "d * (2 * distances + count * d)", "d * (distances + count * d)"
    ),
    "no barrier in fold_slots": order(FOLD, "    ptx::bar_sync_all();\n", ""),
    "fold_slots skips the last slot": value(FOLD, "if (slot + half < width)", "if (slot + half + 1 < width)"),
}


def exercise(kernels, schedule, prologue=False):
    bias = torch.linspace(2, 30, 72)
    conv = raw_convolution(torch.bfloat16, 3, 24, 6, 7, 72, 3, 3, padding=1, prologue=prologue, bias=bias)
    check_statistics(kernels, (64, 64), conv, schedule=schedule)
    # A partial last tile and more parts than a bn_finish CTA has rows; then channels whose first value is infinite
    conv = raw_convolution(torch.bfloat16, 1, 8, 63, 67, 8, 1, 1)
    check_statistics(kernels, (64, 64), conv, schedule=schedule)
    conv.x[0, :, 0, 0] = torch.inf
    conv.weight.abs_()
    _, moments, report = run_statistics(kernels, (64, 64), conv, schedule=schedule)
    assert report["errors"] == []
    assert torch.isposinf(moments[0]).all()
    assert torch.isnan(moments[1]).all()


def exercise_center(kernels, schedule):
    test_mean_far_from_zero_does_not_cost_precision(kernels, torch.float32)


@by_schedule
@pytest.mark.parametrize("prologue", [False, True])
def test_exercise_passes(kernels, schedule, prologue):
    exercise(kernels, schedule, prologue)


@each_mutation(
    mutations_of(MOMENT_MUTATIONS, fails(exercise), ("conv_stats_bf16",), f"v.tile_m == 64 && {is_mode('statistics')}"),
    mutations_of(CENTER_MUTATIONS, fails(exercise_center), ("conv_stats_tf32",), "v.tile_m == 64"),
    mutations_of(FINISH_MUTATIONS, fails(exercise), ("bn_finish",)),
)
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
