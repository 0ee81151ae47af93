"""sm90/conv_sm90 (TMA, wgmma, warp specialisation) on the emulator, which checks every access."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from cuda_cases.batch_norm import batch_norm_kinds
from cuda_cases.convolution import (
    check,
    check_nonfinite,
    convolution,
    deep_projection,
    identity,
    plant_nonfinite,
    randn,
    shifted_prologue,
)
from cuda_cases.sm90 import GEOMETRIES, ON_HOPPER, TILES, VARIANTS, by_dtype, by_variant, small_case
from cuda_on_cpu.conv_fwd import MODES, STATISTICS, Variant, is_mode, run
from mutation import by_schedule, each_mutation, fails, mutations_of, order, value


def test_compiled_variants_are_the_listed_ones(kernels):
    compiled = [Variant.of(v) for v in kernels.compiled_conv_sm90()]
    assert len(compiled) == len(set(compiled))
    # test_cuda_sm90_stats.py tests those with statistics
    assert {v for v in compiled if v.mode not in STATISTICS} == set(VARIANTS)


@by_variant
@by_schedule
def test_every_variant(kernels, v, schedule):
    case = small_case(v)
    report = check(kernels, **case, schedule=schedule, **ON_HOPPER)
    assert report["bytes_stored"] == math.prod(case["conv"].output_shape()) * 2  # each output once


@by_schedule
@pytest.mark.parametrize(("tiles", "blocks"), [(1, 2), (3, 1), (4, 3), (5, 2)])
def test_ping_pong_tiles(kernels, schedule, tiles, blocks):
    """Fewer tiles than warp groups, and more; depths of one step, and of as many steps as pipeline stages."""
    for c in (64, 256):
        conv = convolution(torch.bfloat16, 1, c, tiles, 250, 64, 1, 1)
        residual = randn(conv.output_shape(), torch.bfloat16, 20)
        check(kernels, (256, 64), conv, residual=residual, family="conv_sm90", sm_count=blocks, schedule=schedule)


@by_dtype
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_without_a_residual(kernels, dtype, tile, relu):
    check(kernels, tile, convolution(dtype, 2, 64, 9, 9, 64, 1, 1), relu=relu, **ON_HOPPER)


@by_dtype
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_geometries(kernels, dtype, geometry):
    check(kernels, (256, 64), convolution(dtype, *geometry), **ON_HOPPER)


@by_dtype
@pytest.mark.parametrize("geometry", ["1x1, stride 2", "3x3, stride 2", "3x3, dilation 2", "7x7, stride 2"])
def test_prologue_keeps_padding_zero(kernels, dtype, geometry):
    """Padding stays zero, although BatchNorm and ReLU turn a zero input into relu(shift)."""
    conv = shifted_prologue(convolution(dtype, *GEOMETRIES[geometry], prologue=True))
    check(kernels, (128, 128), conv, **ON_HOPPER)


@by_dtype
@pytest.mark.parametrize("tile", [(256, 64), (128, 128)], ids=str)
@pytest.mark.parametrize("prologue", [False, True], ids=["projection", "prologue"])
def test_projection_is_deeper_than_main(kernels, dtype, tile, prologue):
    check(kernels, **deep_projection(dtype, tile, 64, 320, prologue), **ON_HOPPER)


@by_dtype
def test_batch_norm_kinds(kernels, dtype):
    conv = convolution(dtype, 1, 64, 6, 6, 32, 1, 1)
    for kind in batch_norm_kinds(32, dtype):
        check(kernels, (256, 64), conv._replace(bn=kind), **ON_HOPPER)


@by_dtype
@pytest.mark.parametrize("mode", MODES)
def test_nonfinite_values(kernels, dtype, mode):
    case = small_case(Variant(dtype, (128, 128), mode))
    plant_nonfinite(case["conv"].x, case["projection"].x if "projection" in case else case["residual"])
    check_nonfinite(kernels, case, **ON_HOPPER)


@by_dtype
def test_result_is_rounded_once(kernels, dtype):
    """With identity weights and no BatchNorm, the output is x + residual, rounded once."""
    conv, residual = identity(dtype, 8, 8), randn((1, 64, 8, 8), dtype, 1)
    out, _ = run(kernels, (256, 64), conv, residual=residual, relu=False, **ON_HOPPER)
    torch.testing.assert_close(out, (conv.x.float() + residual.float()).to(dtype), rtol=0, atol=0)


CONFIG, WORK, ROLES, KERNEL, HOST = (
    "cuda/kernels/sm90/conv_sm90_config.cuh",
    "cuda/kernels/sm90/conv_sm90_work.cuh",
    "cuda/kernels/sm90/conv_sm90_roles.cuh",
    "cuda/kernels/sm90/conv_sm90.cuh",
    "cuda/kernels/sm90/conv_sm90_variants.cuh",
)
READ_STAGE = (
    "    ptx::mbarrier_wait_parity(Config::kHasPrologue ? barriers.ready(at.stage) : barriers.full(at.stage), "
    "at.parity);"
)
MUTATIONS = {
    "a stage refilled while it is read": order(
        ROLES,
        "ptx::mbarrier_wait_parity(barriers.empty(at.stage), at.parity ^ 1);",
        "",
    ),
    "wrong parity in the wait for an empty stage": order(
        ROLES,
        "barriers.empty(at.stage), at.parity ^ 1)",
        "barriers.empty(at.stage), at.parity)",
    ),
    "full barrier expects too few bytes": order(
        ROLES,
        "barriers.full(at.stage), Config::kStageBytes)",
        "barriers.full(at.stage), Config::kStageBytes - 128)",
    ),
    "full barrier expects too many bytes": order(
        ROLES,
        "barriers.full(at.stage), Config::kStageBytes)",
        "barriers.full(at.stage), Config::kStageBytes + 128)",
    ),
    "no wait for a full stage": order(ROLES, READ_STAGE, ""),
    "no wgmma fence": order(ROLES, "    ptx::wgmma_fence();\n", ""),
    "a stage released while it is multiplied": order(
        ROLES, "ptx::wgmma_wait_group<1>();", "ptx::wgmma_wait_group<2>();"
    ),
    "no wait for the last wgmmas": order(ROLES, "  ptx::wgmma_wait_group<0>();\n", ""),
    "one warp arrives for its whole warp group": order(
        ROLES,
        "const bool elected = threadIdx.x % 32 == 0;",
        "const bool elected = threadIdx.x % 128 == 0;",
    ),
    "empty barrier expects one of four arrivals": order(
        KERNEL,
        "barriers.empty(i), Config::kReaders)",
        "barriers.empty(i), Config::kReaders / 4)",
    ),
    "no fence.proxy.async before the output is stored": order(
        ROLES,
        "      ptx::fence_proxy_async();  // TMA reads through the async proxy\n",
        "",
    ),
    "no wait for the staged output": order(ROLES, "    ptx::mbarrier_wait_parity(staged, parity);\n", ""),
    "staged barrier expects one of four arrivals": order(KERNEL, "barriers.staged(i), 4)", "barriers.staged(i), 1)"),
    "output overwritten while it is stored": order(
        ROLES,
        "    ptx::bulk_wait_group_read<0>();  // the next",
        "    // the next",
    ),
    "no wait for the residual": order(
        ROLES,
        "    ptx::mbarrier_wait_parity(barriers.open(consumer), (Config::kPingpong ? piece / 2 : piece) & 1);\n",
        "",
    ),
    "no barrier after mbarrier init": order(
        KERNEL,
        "  ptx::bar_sync_all();\n\n  // Registers move",
        "\n  // Registers move",
    ),
    "matrix tensor map without swizzle": value(
        HOST,
        "  box.swizzle = Swizzle::k128;\n  return encode_tiled",
        "  box.swizzle = Swizzle::kNone;\n  return encode_tiled",
    ),
    "weights of the other warp group": value(
        ROLES,
        "Config::kPixelBytes + consumer * Config::kChannelStride",
        "Config::kPixelBytes + (1 - consumer) * Config::kChannelStride",
    ),
    "rows and columns of taps swapped": value(
        ROLES,
        "static_cast<uint16_t>(s * shape.dil_w),",
        "static_cast<uint16_t>(r * shape.dil_w),",
    ),
    "main loop one step too short": value(
        WORK,
        "return shape.r * shape.s * (shape.c / kConvSm90Depth);",
        "return shape.r * shape.s * (shape.c / kConvSm90Depth) - 1;",
    ),
    "BatchNorm not reloaded for new channels": value(
        ROLES, "finishes && channel != known", "finishes && known == none"
    ),
}
PROLOGUE_MUTATIONS = {
    "prologue does not wait for the stage": order(
        ROLES,
        "ptx::mbarrier_wait_parity(barriers.full(at.stage), at.parity);\n    const ChannelRegisters",
        "const ChannelRegisters",
    ),
    "no fence.proxy.async after the prologue": order(
        ROLES,
        "    ptx::fence_proxy_async();  // wgmma reads through the async proxy\n",
        "",
    ),
    "prologue applied to padding": value(ROLES, "      if (!pixels.valid(i, tap)) continue;\n", ""),
    "ready barrier expects half the arrivals": order(KERNEL, "barriers.ready(i), 128)", "barriers.ready(i), 64)"),
}
PINGPONG_MUTATIONS = {
    "no wait for the order barrier": order(
        ROLES,
        "      if (piece > 0) ptx::mbarrier_wait_parity(barriers.order(consumer), (piece - 1) / 2 & 1);\n",
        "",
    ),
    "wrong parity in the wait for the order barrier": order(
        ROLES,
        "barriers.order(consumer), (piece - 1) / 2 & 1",
        "barriers.order(consumer), piece / 2 & 1",
    ),
    "order not passed to the other consumer": order(ROLES, "barriers.order(1 - consumer)", "barriers.order(consumer)"),
    "order barrier expects one of four arrivals": order(KERNEL, "barriers.order(i), 4)", "barriers.order(i), 1)"),
    "other consumer's stages not skipped": order(ROLES, "        skip(at, scheduler.steps());\n", ""),
    "parity not flipped when stages are skipped": order(ROLES, "  at.parity ^= at.stage / kStages & 1;\n", ""),
    "empty barrier expects both warp groups": order(
        CONFIG,
        "kReaders = kPingpong ? 4 : 4 * kConvSm90Consumers",
        "kReaders = 4 * kConvSm90Consumers",
    ),
    "residual loaded over an output being stored": order(
        ROLES,
        "    ptx::bulk_wait_group_read<0>();  // the output before",
        "    // the output before",
    ),
    "residual loaded for the other consumer": order(
        ROLES,
        "OutputPart<Config>(ahead, (piece + 1) % 2,",
        "OutputPart<Config>(ahead, piece % 2,",
    ),
}


def exercise(mode, kernels, schedule):
    """More tiles than CTAs."""
    case = small_case(Variant(torch.bfloat16, (128, 128), mode))
    check(kernels, **case, schedule=schedule, family="conv_sm90", sm_count=3)


def exercise_pingpong(kernels, schedule):
    """Two tiles per warp group: of nine steps, and of four steps in a pipeline of four stages."""
    two = small_case(Variant(torch.bfloat16, (256, 64), "plain"))
    check(kernels, **two, schedule=schedule, family="conv_sm90", sm_count=1)
    once_round = convolution(torch.bfloat16, 1, 256, 3, 250, 64, 1, 1)
    check(kernels, (256, 64), once_round, schedule=schedule, family="conv_sm90", sm_count=1)


def caught(mutations, exercise, variants):
    return mutations_of(mutations, fails(exercise), ("conv_sm90_bf16",), variants)


@by_schedule
def test_exercise_passes(kernels, schedule):
    for mode in MODES:
        exercise(mode, kernels, schedule)
    exercise_pingpong(kernels, schedule)


@each_mutation(
    caught(MUTATIONS, functools.partial(exercise, "plain"), f"v.tile_m == 128 && {is_mode('plain')}"),
    caught(PROLOGUE_MUTATIONS, functools.partial(exercise, "prologue"), f"v.tile_m == 128 && {is_mode('prologue')}"),
    caught(PINGPONG_MUTATIONS, exercise_pingpong, f"v.tile_n == 64 && {is_mode('plain')}"),
)
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
