"""sm90/conv_sm90 with statistics on the emulator: the pre-BN output, and the moments of the stored values."""

from __future__ import annotations

import functools

import pytest
import torch
from cuda_cases.convolution import (
    assert_same_bits,
    by_nonfinite,
    check_moments,
    check_statistics,
    raw_convolution,
    shifted_prologue,
)
from cuda_cases.sm90 import (
    GEOMETRIES,
    ON_HOPPER,
    STATISTICS_VARIANTS,
    TILES_WITH_STATISTICS,
    by_dtype,
    small_convolution,
)
from cuda_on_cpu.conv_fwd import STATISTICS, Variant, is_mode, part_pixels, run_statistics
from mutation import SCHEDULES, by_schedule, each_mutation, fails, mutations_of, order, value

from resnet_fused import reference

by_variant = pytest.mark.parametrize("v", STATISTICS_VARIANTS, ids=str)
CASES = [(t, m.startswith("prologue")) for t, modes in TILES_WITH_STATISTICS.items() for m in modes]
by_tile = pytest.mark.parametrize(("tile", "prologue"), CASES, ids=str)


def run(kernels, tile, conv, **options):
    return run_statistics(kernels, tile, conv, **ON_HOPPER | options)


def check(kernels, tile, conv, **options):
    return check_statistics(kernels, tile, conv, **ON_HOPPER | options)


def copied(values):
    """Returns a 1x1 convolution whose output is ``values``, rounded to bfloat16, in each of 8 channels."""
    conv = raw_convolution(torch.bfloat16, 1, 64, 1, values.numel(), 8, 1, 1)
    conv.x.zero_()[:, 5] = values.bfloat16()
    conv.weight.zero_()[:, 5] = 1
    return conv


def test_compiled_variants_are_the_listed_ones(kernels):
    compiled = [Variant.of(v) for v in kernels.compiled_conv_sm90()]
    assert {v for v in compiled if v.mode in STATISTICS} == set(STATISTICS_VARIANTS)


@by_variant
@by_schedule
def test_every_variant(kernels, v, schedule):
    conv = small_convolution(v, make=raw_convolution, prologue=v.mode.startswith("prologue"))
    report = check(kernels, v.tile, conv, schedule=schedule)
    n, k, p, q = conv.output_shape()
    parts = -(-n * p * q // part_pixels("conv_sm90", v.tile, conv.pre is not None))
    assert report["bytes_stored"] == n * k * p * q * 2 + parts * 3 * k * 4


@by_dtype
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_geometries(kernels, dtype, geometry):
    check(kernels, (256, 64), raw_convolution(dtype, *geometry))


@by_dtype
@pytest.mark.parametrize("geometry", ["1x1, stride 2", "3x3, stride 2", "3x3, dilation 2", "7x7, stride 2"])
def test_prologue_keeps_padding_zero(kernels, dtype, geometry):
    """Padding stays zero, although BatchNorm and ReLU turn a zero input into relu(shift)."""
    check(kernels, (256, 64), shifted_prologue(raw_convolution(dtype, *GEOMETRIES[geometry], prologue=True)))


@by_tile
@pytest.mark.parametrize("pixels", [1, 7, 127, 128, 129, 255, 256, 257, 385])
def test_parts_with_few_pixels(kernels, tile, prologue, pixels):
    """Pixel counts around one warp group's share, one tile, and a tile and a half."""
    bias = torch.linspace(-300, 300, 72)
    check(kernels, tile, raw_convolution(torch.bfloat16, 1, 64, 1, pixels, 72, 1, 1, prologue=prologue, bias=bias))


@by_schedule
@pytest.mark.parametrize(("tiles", "blocks"), [(1, 2), (3, 1), (4, 3), (5, 2)])
def test_ping_pong_tiles(kernels, schedule, tiles, blocks):
    conv = raw_convolution(torch.bfloat16, 1, 64, tiles, 250, 64, 1, 1)
    check(kernels, (256, 64), conv, sm_count=blocks, schedule=schedule)


@by_tile
@by_dtype
def test_bias_does_not_cost_precision(kernels, tile, prologue, dtype):
    """A mean of up to 300 standard deviations causes no cancellation."""
    conv = raw_convolution(dtype, 5, 64, 9, 9, 24, 3, 3, 1, 1, bias=torch.linspace(100, 300, 24), prologue=prologue)
    out, moments, report = run(kernels, tile, conv)
    assert report["errors"] == []
    for a, t in zip(moments, reference.bn_stats(out.double()), strict=True):
        torch.testing.assert_close(a.double(), t, rtol=2**-20, atol=0)


@by_tile
def test_mean_of_a_thousand_deviations(kernels, tile, prologue):
    """In float16, which still resolves the deviations. The 4096 pixels fill whole parts."""
    conv = raw_convolution(torch.float16, 1, 64, 64, 64, 8, 1, 1, bias=torch.full((8,), 1e3), prologue=prologue)
    out, moments, report = run(kernels, tile, conv)
    assert report["errors"] == []
    mean, var = reference.bn_stats(out.double())
    torch.testing.assert_close(moments[0].double(), mean, rtol=2**-23, atol=0)
    torch.testing.assert_close(moments[1].double(), var, rtol=2**-21, atol=0)


@pytest.mark.parametrize("tile", TILES_WITH_STATISTICS, ids=str)
@pytest.mark.parametrize("pixels", [1024, 1100], ids=["whole parts", "a ragged part"])
@pytest.mark.parametrize("at", [0, 1, -1], ids=["first", "second", "last"])
def test_outlier_does_not_cost_precision(kernels, tile, pixels, at):
    """An outlier does not become the center of a whole part, so the other values lose no digits."""
    values = torch.randn(pixels)
    values[at] = 2.0**13
    out, moments, report = run(kernels, tile, copied(values))
    assert report["errors"] == []
    assert out.max() == 2.0**13
    check_moments(out, moments)


@by_tile
@by_nonfinite
def test_statistics_of_nonfinite_values(kernels, tile, prologue, value):
    """A 1x1 filter spreads the value to all channels of a pixel: first, middle or last of a part, or another."""
    for pixel in (0, 128, 248, 41):
        conv = raw_convolution(torch.bfloat16, 1, 64, 10, 30, 24, 1, 1, prologue=prologue)
        conv.x[0, 3, pixel // 30, pixel % 30] = value
        conv.weight[:, 3] = conv.weight[:, 3].abs() + 0.1
        out, moments, report = run(kernels, tile, conv)
        assert report["errors"] == []
        for a, e in zip(moments, reference.bn_stats(out), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6, equal_nan=True)


@by_tile
def test_sums_are_deterministic(kernels, tile, prologue):
    conv = raw_convolution(torch.bfloat16, 2, 64, 12, 12, 72, 3, 3, 1, 1, prologue=prologue)
    order = [dict(schedule=s, seed=seed, sm_count=sms) for s in SCHEDULES for seed, sms in ((1, 2), (2, 3))]
    assert_same_bits([run(kernels, tile, conv, **how)[1] for how in order])


MOMENTS = "cuda/kernels/sm90/conv_sm90_moments.cuh"
CENTERS = "cuda/kernels/bn/moments.cuh"
OF_SUMS = """
    for (int e = 0; e < 8; ++e) {
      const double d = v[e] - moments.center[e / 2 % 2];
      if ((j + e / 4) * 8 + e % 2 < moments.left) moments.sum[e / 2 % 2] += d, moments.squares[e / 2 % 2] += d * d;
    }
"""
MUTATIONS = {
    "counts pixels past the end": value(MOMENTS, "if ((j + e / 4) * 8 + e % 2 < left)", "if (true)"),
    "lane offset not subtracted from the pixel count": value(
        MOMENTS, "count - static_cast<int32_t>(threadIdx.x % 4 * 2)", "count"
    ),
    "quad reduction stops one step early": value(MOMENTS, "by = 1; by < 4;", "by = 1; by < 2;"),
    "moments of unrounded values": value(MOMENTS, "    moments.add(stored, j);\n", OF_SUMS),
    "pixel mask of another piece": value(MOMENTS, "    moments.add(stored, j);\n", "    moments.add(stored, j + 2);\n"),
    "run sums not cleared": value(MOMENTS, "      run_sum[row] = run_squares[row] = 0;\n", ""),
    "last run sum not added": value(MOMENTS, "if ((j + 2) % kRun) return;", "if (j % kRun) return;"),
    "lanes of a row use different centers": value(MOMENTS, "threadIdx.x % 32 / 4 * 4)", "threadIdx.x % 32)"),
    "sums not re-centered on the mean": value(MOMENTS, "        move_center(", "        if (false) move_center("),
    "squares re-centered with half the cross term": value(
        CENTERS, "by * (2 * sum - count * by)", "by * (sum - count * by)"
    ),
    "re-centering uses the pixel count of all lanes": value(MOMENTS, "squares[row], own,", "squares[row], count,"),
    "re-centering counts pixels past the end": value(MOMENTS, "(left % 8 < 2 ? left % 8 : 2)", "2"),
    "stores channels past the end": value(MOMENTS, "which < 3 && at < channels", "which < 3"),
    "fourth lane of a row stores too": value(MOMENTS, "which < 3 && at < channels", "at < channels"),
    "second channel stored next to the first": value(MOMENTS, "at = channel + row * 8;", "at = channel + row;"),
    "bias not added": value(MOMENTS, "v[e] = bias.apply(product[j * 4 + e], e / 2 % 2);", "v[e] = product[j * 4 + e];"),
}
CENTER_MUTATIONS = {
    "center is the first value": value(MOMENTS, "whole ? stored.get(2 + row) : first", "first"),
    "infinite center accepted": value(CENTERS, "return is_finite(center) ? center : Acc(0);", "return center;"),
    "infinite mean accepted as center": value(MOMENTS, "if (is_finite(mean)) {", "if (true) {"),
}
PART_MUTATIONS = {
    "empty part stored": value(MOMENTS, "if (left > 0) moments.store", "moments.store"),
    "both warp groups store to one part": order(
        MOMENTS, "part.pixel / Config::kColumns", "part.pixel / Config::kPixels"
    ),
}


def exercise(tile, prologue, kernels, schedule):
    """Channels that do not fill the tiles, and 45 pixels in the last part."""
    bias = torch.linspace(2, 30, tile[1] + 8)
    conv = raw_convolution(torch.bfloat16, 1, 64, 7, 43, tile[1] + 8, 1, 1, prologue=prologue, bias=bias)
    check(kernels, tile, conv, schedule=schedule)


def exercise_centers(kernels, schedule):
    """The first value is an outlier, then infinite."""
    values = torch.randn(512)
    values[0] = 2.0**13
    out, moments, report = run(kernels, (256, 64), copied(values), schedule=schedule)
    assert report["errors"] == []
    check_moments(out, moments)
    values = torch.randn(100)
    values[0] = torch.inf
    _, moments, report = run(kernels, (256, 64), copied(values), schedule=schedule)
    assert report["errors"] == []
    assert torch.isposinf(moments[0]).all()
    assert torch.isnan(moments[1]).all()


def caught(mutations, exercise, variants):
    return mutations_of(mutations, fails(exercise), ("conv_sm90_stats_bf16",), variants)


@by_schedule
def test_exercise_passes(kernels, schedule):
    for tile, prologue in CASES:
        exercise(tile, prologue, kernels, schedule)
    exercise_centers(kernels, schedule)


@each_mutation(
    caught(MUTATIONS, functools.partial(exercise, (128, 128), False), f"v.tile_m == 128 && {is_mode('statistics')}"),
    caught(CENTER_MUTATIONS, exercise_centers, f"v.tile_m == 256 && v.tile_n == 64 && {is_mode('statistics')}"),
    caught(
        PART_MUTATIONS,
        functools.partial(exercise, (256, 64), True),
        f"v.tile_m == 256 && {is_mode('prologue-statistics')}",
    ),
)
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
