"""sm90/conv_rows (TMA, wgmma, two alternating warp groups) on the emulator, which checks every access."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from cuda_cases.batch_norm import batch_norm_kinds
from cuda_cases.convolution import check, check_nonfinite, convolution, plant_nonfinite, randn
from cuda_cases.sm90 import DTYPES, by_dtype
from cuda_on_cpu.conv_fwd import Variant, run
from cuda_on_cpu.tensors import BatchNorm
from mutation import by_schedule, each_mutation, fails, mutations_of, order, value

TILES = [(4, 56), (7, 32), (8, 32), (16, 16), (8, 8)]  # rows, columns
VARIANTS = [Variant(d, t, "plain") for d, t in itertools.product(DTYPES, TILES)]
# Two CTAs, each with several tiles for its two consumers.
ON_HOPPER = dict(family="conv_rows", sm_count=2)

by_tile = pytest.mark.parametrize("tile", TILES, ids=str)
by_variant = pytest.mark.parametrize("v", VARIANTS, ids=str)


def conv3x3(dtype, n, h, w, **changes):
    return convolution(dtype, n, 64, h, w, 64, 3, 3, padding=1, **changes)


def small_case(v: Variant) -> dict:
    """Nine tiles, three per image and four or five per CTA: all partial at the right, each third one at the bottom."""
    rows, columns = v.tile
    conv = conv3x3(v.dtype, 3, 2 * rows + 1, columns - 1)
    return dict(tile=v.tile, conv=conv, residual=randn(conv.output_shape(), v.dtype, 20))


def test_compiled_variants_are_the_listed_ones(kernels):
    compiled = [Variant.of(v) for v in kernels.compiled_conv_rows()]
    assert len(compiled) == len(set(compiled))
    assert set(compiled) == set(VARIANTS)


@by_variant
@by_schedule
def test_every_variant(kernels, v, schedule):
    case = small_case(v)
    report = check(kernels, **case, schedule=schedule, **ON_HOPPER)
    assert report["bytes_stored"] == math.prod(case["conv"].output_shape()) * 2  # each output once


def test_pixels_are_read_once_for_three_taps(kernels):
    """A tile reads three patches, clipped to the image; a CTA reads the filter once; the residual is read once."""
    dtype, (rows, columns), blocks = torch.bfloat16, (4, 56), ON_HOPPER["sm_count"]
    n, h, w = 2, 9, 60
    conv = conv3x3(dtype, n, h, w)._replace(bn=BatchNorm())
    residual = randn(conv.output_shape(), dtype, 1)
    report = check(kernels, (rows, columns), conv, residual=residual, **ON_HOPPER)

    def inside(begin, end, size):
        return min(end, size) - max(begin, 0)

    high = sum(inside(p - 1, p + rows + 1, h) for p in range(0, h, rows))
    wide = sum(inside(q + s, q + s + columns, w) for q in range(0, w, columns) for s in (-1, 0, 1))
    pixels = n * high * wide + 9 * 64 * blocks + n * h * w
    assert report["bytes_loaded"] == pixels * 128


@by_dtype
@by_tile
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_without_a_residual(kernels, dtype, tile, relu):
    check(kernels, tile, conv3x3(dtype, 2, tile[0] + 3, tile[1]), relu=relu, **ON_HOPPER)


# tile, n, h, w
GEOMETRIES = {
    "56x56, 14 tiles of one image": ((4, 56), 1, 56, 56),
    "one column more than a tile": ((4, 56), 2, 6, 57),
    "28x28": ((7, 32), 2, 28, 28),
    "30x30": ((8, 32), 1, 30, 30),
    "three tiles wide": ((8, 32), 1, 9, 70),
    "14x14": ((16, 16), 3, 14, 14),
    "7x7, less than half a tile": ((16, 16), 5, 7, 7),
    "9 columns": ((16, 16), 2, 20, 9),
    "one pixel": ((4, 56), 3, 1, 1),
    "56 columns, 8x8 tiles": ((8, 8), 1, 9, 56),
    "small images": ((8, 8), 5, 7, 7),
    "one row": ((7, 32), 2, 1, 40),
    "one column": ((8, 32), 2, 17, 1),
}


@by_dtype
@pytest.mark.parametrize(("tile", "n", "h", "w"), GEOMETRIES.values(), ids=GEOMETRIES)
def test_geometries(kernels, dtype, tile, n, h, w):
    conv = conv3x3(dtype, n, h, w)
    check(kernels, tile, conv, residual=randn(conv.output_shape(), dtype, 2), **ON_HOPPER)


@pytest.mark.parametrize("blocks", [1, 3, 16], ids=lambda n: f"{n} blocks")
@by_schedule
def test_sm_counts(kernels, blocks, schedule):
    """All tiles on one CTA, a last round without tiles for the second consumers, and at most one tile per CTA."""
    case = small_case(Variant(torch.bfloat16, (16, 16), "plain"))
    check(kernels, **case, schedule=schedule, family="conv_rows", sm_count=blocks)


@pytest.mark.parametrize("seed", range(2, 8))
def test_random_schedules(kernels, seed):
    case = small_case(Variant(torch.bfloat16, (16, 16), "plain"))
    check(kernels, **case, schedule="random", seed=seed, **ON_HOPPER)


@by_dtype
def test_batch_norm_kinds(kernels, dtype):
    conv = conv3x3(dtype, 1, 6, 6)
    for kind in batch_norm_kinds(64, dtype):
        check(kernels, (16, 16), conv._replace(bn=kind), **ON_HOPPER)


@by_dtype
def test_nonfinite_values(kernels, dtype):
    """Inf and NaN reach only the pixels that read them; tile positions outside the image are not stored."""
    case = small_case(Variant(dtype, (16, 16), "plain"))
    plant_nonfinite(case["conv"].x, case["residual"])
    check_nonfinite(kernels, case, **ON_HOPPER)


@by_dtype
@pytest.mark.parametrize(("r", "s"), list(itertools.product(range(3), range(3))))
def test_each_tap_is_rounded_once(kernels, dtype, r, s):
    """With the identity at one tap and no BatchNorm, the output is the shifted x + residual, rounded once."""
    case = conv3x3(dtype, 1, 9, 12)
    weight = torch.zeros(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight[:, :, r, s] = torch.eye(64, dtype=dtype)
    residual = randn((1, 64, 9, 12), dtype, 1)
    conv = case._replace(weight=weight, bn=BatchNorm())
    out, _ = run(kernels, (8, 32), conv, residual=residual, relu=False, **ON_HOPPER)
    moved = torch.nn.functional.pad(case.x.float(), (1, 1, 1, 1))[:, :, r : r + 9, s : s + 12]
    torch.testing.assert_close(out, (moved + residual.float()).to(dtype), rtol=0, atol=0)


ROLES, CONFIG, KERNEL, HOST = (
    "cuda/kernels/sm90/conv_rows_roles.cuh",
    "cuda/kernels/sm90/conv_rows_config.cuh",
    "cuda/kernels/sm90/conv_rows.cuh",
    "cuda/kernels/sm90/conv_rows_variants.cuh",
)
ORDER = "    ptx::mbarrier_wait_parity(barriers.order(consumer), consumer == 0 ? parity ^ 1 : parity);"
MUTATIONS = {
    "a stage refilled while it is read": order(
        ROLES,
        "ptx::mbarrier_wait_parity(barriers.empty(stage), Config::parity_of(t) ^ 1);",
        "",
    ),
    "wrong parity in the wait for an empty stage": order(ROLES, "Config::parity_of(t) ^ 1)", "Config::parity_of(t))"),
    "full barrier expects too few bytes": order(
        ROLES, "barriers.full(stage), Config::kPatchBytes)", "barriers.full(stage), 128)"
    ),
    "full barrier expects too many bytes": order(
        ROLES,
        "barriers.full(stage), Config::kPatchBytes)",
        "barriers.full(stage), Config::kPatchBytes + 128)",
    ),
    "filter barrier expects one tap too few": order(
        ROLES,
        "barriers.filter(), kConvRowsFilterBytes)",
        "barriers.filter(), kConvRowsFilterBytes - Config::kTapBytes)",
    ),
    "no wait for the filter": order(ROLES, "  ptx::mbarrier_wait_parity(barriers.filter(), 0);\n", ""),
    "no wait for a patch": order(
        ROLES,
        "    ptx::mbarrier_wait_parity(barriers.full(first + s), Config::parity_of(t));\n",
        "",
    ),
    "wrong parity in the wait for a patch": order(
        ROLES,
        "barriers.full(first + s), Config::parity_of(t));",
        "barriers.full(first + s), Config::parity_of(t) ^ 1);",
    ),
    "no wait at the order barrier": order(ROLES, ORDER, ""),
    "neither consumer is first at the order barrier": order(ROLES, "consumer == 0 ? parity ^ 1 : parity", "parity"),
    "order barrier of the other not signalled": order(ROLES, "barriers.order((t + 1) % 2)", "barriers.order(t % 2)"),
    "no wgmma fence": order(ROLES, "    ptx::wgmma_fence();\n", ""),
    "a stage released while it is multiplied": order(
        ROLES, "ptx::wgmma_wait_group<1>();", "ptx::wgmma_wait_group<2>();"
    ),
    "no wait for the last wgmmas": order(ROLES, "  ptx::wgmma_wait_group<0>();\n", ""),
    "the last stage never released": order(
        ROLES, "barriers.empty(first + kConvRowsPatches - 1)", "barriers.empty(first)"
    ),
    "one warp arrives for its whole warp group": order(
        ROLES,
        "const bool elected = threadIdx.x % 32 == 0;",
        "const bool elected = threadIdx.x % 128 == 0;",
    ),
    "empty barrier expects one of four arrivals": order(KERNEL, "barriers.empty(s), 4)", "barriers.empty(s), 1)"),
    "all taps start at one patch row": value(ROLES, "r * Config::kPatchRowBytes", "Config::kPatchRowBytes"),
    "patch row pitch too large": value(ROLES, "r * Config::kPatchRowBytes", "r * (Config::kPatchRowBytes + 128)"),
    "rows and columns of taps swapped": value(ROLES, "(r * kConvRowsTaps + s)", "(s * kConvRowsTaps + r)"),
    "patch off by one column": value(ROLES, "scheduler.column() - 1", "scheduler.column()"),
    "accumulators not reset for a new tile": value(ROLES, "s + r + k > 0", "true"),
    "both consumers take the same tiles": order(ROLES, "blockIdx.x + consumer * gridDim.x", "blockIdx.x"),
    "no fence.proxy.async before the output is stored": order(
        ROLES,
        "    ptx::fence_proxy_async();  // TMA reads through the async proxy\n",
        "",
    ),
    "no wait for the staged output": order(
        ROLES, "    ptx::mbarrier_wait_parity(barriers.staged(t % 2), t / 2 % 2);\n", ""
    ),
    "staged barrier expects one of four arrivals": order(KERNEL, "barriers.staged(i), 4)", "barriers.staged(i), 1)"),
    "residual loaded over a tile being stored": order(
        ROLES,
        "    ptx::bulk_wait_group_read<0>();  // the next",
        "    // the next",
    ),
    "no wait for the residual": order(ROLES, "    ptx::mbarrier_wait_parity(barriers.open(consumer), parity);\n", ""),
    "one open barrier for both consumers": order(
        CONFIG,
        "return order(kConvRowsConsumers + consumer);",
        "return order(kConvRowsConsumers + 0 * consumer);",
    ),
    "next tile opened in memory still in use": order(ROLES, "kAhead = Config::kSets - 1;", "kAhead = 1;"),
    "no barrier after mbarrier init": order(
        KERNEL,
        "  ptx::bar_sync_all();\n\n  // Registers move",
        "\n  // Registers move",
    ),
    "image tensor map without swizzle": value(
        HOST,
        "box.box[2] = rows;\n  box.swizzle = Swizzle::k128;",
        "box.box[2] = rows;\n  box.swizzle = Swizzle::kNone;",
    ),
    "two filter taps loaded to one place": order(
        ROLES,
        "smem + tap * Config::kTapBytes",
        "smem + tap / 2 * Config::kTapBytes",
    ),
    "tensor map joins the rows of all images": value(
        HOST,
        "nhwc_tensor(base, dtype, q.n, q.h, q.w, kConvRowsChannels)",
        "nhwc_tensor(base, dtype, 1, int64_t{q.n} * q.h, q.w, kConvRowsChannels)",
    ),
}
SET_MUTATIONS = {
    "output stored from the other set": order(
        ROLES,
        "tma_store_4d(maps.out, smem + Config::kOut + Config::set_of(t)",
        "tma_store_4d(maps.out, smem + Config::kOut + Config::set_of(t + 1)",
    ),
    "patches loaded into the other set": order(
        ROLES,
        "stage = Config::set_of(t) * kConvRowsPatches + s",
        "stage = Config::set_of(t + 1) * kConvRowsPatches + s",
    ),
    "parity of one set used for two": order(CONFIG, "return t / kSets % 2;", "return t % 2;"),
}


def exercise(tile, kernels, schedule):
    """More tiles than consumers, partial both ways, and a residual. 16x16 tiles have one set of buffers, 8x8 two."""
    check(kernels, **small_case(Variant(torch.bfloat16, tile, "plain")), schedule=schedule, **ON_HOPPER)


def caught(mutations, tile):
    check = fails(functools.partial(exercise, tile))
    return mutations_of(mutations, check, ("conv_rows_bf16",), f"v.tile_m == {tile[0]} && v.tile_n == {tile[1]}")


@by_schedule
def test_exercise_passes(kernels, schedule):
    exercise((16, 16), kernels, schedule)
    exercise((8, 8), kernels, schedule)


@each_mutation(caught(MUTATIONS, (16, 16)), caught(SET_MUTATIONS, (8, 8)))
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
