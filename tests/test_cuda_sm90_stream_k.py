"""Stream-K on the emulator: conv_sm90 with tiles split into work units, and conv_sm90_finish, which adds them."""

from __future__ import annotations

import functools

import pytest
import torch
from cuda_cases.convolution import (
    assert_same_bits,
    check,
    check_nonfinite,
    convolution,
    plant_nonfinite,
    randn,
    shifted_prologue,
)
from cuda_cases.sm90 import ON_HOPPER, by_dtype, by_variant, small_case
from cuda_on_cpu.conv_fwd import MODES, Variant, is_mode, run
from mutation import by_schedule, each_mutation, fails, mutations_of, order, value

# For four or six tiles: a CTA has a data-parallel tile and units, and only the last unit ends where a tile ends.
UNEVEN = dict(dp_tiles=1, sk_units=7)


def pieces(case, dp_tiles, sk_units):
    """Returns (unit, tile, is projection) of every piece, by the documented partition of steps."""
    n, k, p, q = case["conv"].output_shape()
    tiles = -(-n * p * q // case["tile"][0]) * -(-k // case["tile"][1])
    convs = [c for c in (case.get("projection"), case["conv"]) if c is not None]
    steps = [(tile, c is not case["conv"]) for tile in range(dp_tiles, tiles) for c in convs for _ in range(depth(c))]
    owners = [next(s for s in range(sk_units) if at < (s + 1) * len(steps) // sk_units) for at in range(len(steps))]
    return sorted({(owner, *step) for owner, step in zip(owners, steps, strict=True)})


def depth(conv):
    return conv.weight[0].numel() // 64


def written(case, dp_tiles, sk_units):
    """Returns the bytes that both kernels store: sums in units of 16 pixels x 16 channels, and each output once."""
    n, k, p, q = case["conv"].output_shape()
    pixels, channels = case["tile"]
    tiles_k = -(-k // channels)
    total = n * k * p * q * 2
    for _, tile, _ in pieces(case, dp_tiles, sk_units):
        rows = min(pixels, n * p * q - tile // tiles_k * pixels)
        columns = min(channels, k - tile % tiles_k * channels)
        total += -(-rows // 16) * -(-columns // 16) * 16 * 16 * 4
    return total


def check_units(kernels, case, dp_tiles, sk_units, **options):
    report = check(kernels, **case, dp_tiles=dp_tiles, sk_units=sk_units, **ON_HOPPER, **options)
    assert report["bytes_stored"] == written(case, dp_tiles, sk_units)
    return report


@by_variant
@by_schedule
def test_every_variant_in_units(kernels, v, schedule):
    check_units(kernels, small_case(v), **UNEVEN, schedule=schedule)


# (dp_tiles, sk_units) of six tiles, each of nine steps, or eleven with the projection
PARTITIONS = {
    "a unit is longer than a tile": (0, 4),
    "a unit is a tile": (0, 6),
    "a unit is half a tile": (0, 12),
    "only the last tile is stream-K": (5, 2),
    "a unit is a step": (4, 18),
}


@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS)
@pytest.mark.parametrize("mode", MODES)
def test_unit_partitions(kernels, partition, mode):
    check_units(kernels, small_case(Variant(torch.bfloat16, (128, 128), mode)), *partition)


@by_dtype
def test_unit_begins_within_a_tap(kernels, dtype):
    """Three steps per tap, and a filter that is not square."""
    conv = convolution(dtype, 1, 192, 9, 11, 72, 2, 3, (2, 1), (1, 1))
    case = dict(tile=(256, 64), conv=conv, residual=randn(conv.output_shape(), dtype, 20))
    for sk_units in (4, 7, 18):
        check_units(kernels, case, 0, sk_units)


@by_dtype
def test_unit_with_prologue_begins_within_a_tap(kernels, dtype):
    """Padding stays zero, although BatchNorm and ReLU turn a zero input into relu(shift)."""
    conv = convolution(dtype, 1, 128, 9, 8, 24, 3, 3, 2, 1, prologue=True)
    case = dict(tile=(128, 128), conv=shifted_prologue(conv))
    for sk_units in (5, 9):
        check_units(kernels, case, 0, sk_units)


@by_dtype
@pytest.mark.parametrize(("h", "w", "k"), [(1, 1, 8), (3, 5, 24), (4, 4, 64), (17, 1, 56)])
def test_outputs_around_the_size_of_a_finish_cta(kernels, dtype, h, w, k):
    """Fewer pixels than a CTA of conv_sm90_finish has (16), as many, and one more."""
    conv = convolution(dtype, 1, 64, h, w, k, 3, 3, 1, 1)
    for tile in ((256, 64), (128, 128)):
        case = dict(tile=tile, conv=conv, residual=randn(conv.output_shape(), dtype, 20))
        check_units(kernels, case, 0, 5)
        check_units(kernels, dict(tile=tile, conv=conv), 0, 2, relu=False)


@pytest.mark.parametrize("mode", MODES)
def test_units_are_deterministic(kernels, mode):
    case = small_case(Variant(torch.bfloat16, (128, 128), mode))
    order = [(2, "stay", 1), (3, "random", 2), (6, "random", 3)]
    order = [dict(family="conv_sm90", sm_count=sms, schedule=schedule, seed=seed) for sms, schedule, seed in order]
    assert_same_bits([[run(kernels, **case, **UNEVEN, **how)[0]] for how in order])


@by_dtype
@pytest.mark.parametrize("mode", MODES)
def test_nonfinite_values(kernels, dtype, mode):
    case = small_case(Variant(dtype, (128, 128), mode))
    plant_nonfinite(case["conv"].x, case["projection"].x if "projection" in case else case["residual"])
    check_nonfinite(kernels, case, **UNEVEN, **ON_HOPPER)


FILES = (".h", "_work.cuh", "_roles.cuh", "_finish.cuh")
TABLE, WORK, ROLES, FINISH = (f"cuda/kernels/sm90/conv_sm90{name}" for name in FILES)
FINISH_MUTATIONS = {
    "unit index rounded down": value(WORK, "((step + 1) * units - 1) / steps", "step * units / steps"),
    "last unit not added": value(FINISH, "last - unit + 1, stride", "last - unit, stride"),
    "adds one unit too many": value(FINISH, "last - unit + 1, stride", "last - unit + 2, stride"),
    "partial tile index off by one": value(
        FINISH, "mine + (unit + segment) * stride", "mine + (unit + segment + 1) * stride"
    ),
    "projection adds the main sums": value(
        FINISH,
        "conv_sm90_segment(kMode, index, false), first_step, projection_steps);",
        "conv_sm90_segment(kMode, index, true), first_step + projection_steps, tile_steps - projection_steps);",
    ),
    "reads the neighbouring thread's sums": value(FINISH, "thread * 4) * 4;", "(thread ^ 1) * 4) * 4;"),
    "no barrier after the residual is staged": order(
        FINISH,
        "shortcut.words);\n    ptx::bar_sync_all();",
        "shortcut.words);",
    ),
    "no barrier before the output is read": order(
        FINISH,
        "  ptx::bar_sync_all();\n  Data out;",
        "  Data out;",
    ),
    "output stored past the end": value(FINISH, "  if (inside) ptx::st_global", "  ptx::st_global"),
    "residual read past the end": value(FINISH, "if (residual && inside) shortcut", "if (residual) shortcut"),
    "CTA past the last pixel does not exit": value(
        FINISH,
        "if (pixel >= pixels || channel >= shape.k) return;",
        "if (channel >= shape.k) return;",
    ),
}
UNIT_MUTATIONS = {
    "main sums stored in the next tile's place": order(TABLE, "? 2 * tile + main : tile", "? tile + main : tile"),
}
MUTATIONS = {
    "two units of a tile store to one place": order(WORK, "partial = item - dp_tiles + conv", "partial = conv"),
    "unit loads weights from step 0": value(ROLES, "depth = steps.first * kConvSm90Depth;", "depth = 0;"),
    "unit loads pixels from the first tap": value(ROLES, "r = tap / shape.s, s = tap % shape.s,", "r = 0, s = 0,"),
    "unit runs past its tile": value(
        WORK,
        "left < tile_steps - first ? left : tile_steps - first};",
        "left};",
    ),
    "store thread waits for the output of a unit": order(
        ROLES,
        "scheduler.finishes(); scheduler.next(), parity ^= 1) {\n    for (int i",
        "scheduler.more(); scheduler.next(), parity ^= 1) {\n    for (int i",
    ),
    "stores sums of pixels past the end": value(
        ROLES,
        "    if (pixel + j / 2 * kConvSm90FinishPixels >= pixels) break;\n",
        "",
    ),
    "stores sums of channels past the end": value(ROLES, "  if (channel >= p.main.shape.k) return;\n", ""),
    "sums stored in the other warp group's part": value(
        ROLES, "? 0 : consumer * (Config", "? 0 : (1 - consumer) * (Config"
    ),
    "both warp groups store sums to one place": order(ROLES, "? 0 : consumer * (Config", "? 0 : 0 * (Config"),
}
PROLOGUE_MUTATIONS = {
    "prologue of a unit starts at the first tap": value(ROLES, "steps.first * kRowChunks + column", "column"),
}
TAP_MUTATIONS = {
    "unit starts at the tap's first channel": value(
        ROLES,
        "c = steps.first % a_tap * kConvSm90Depth;",
        "c = 0;",
    ),
}


def exercise(mode, kernels, schedule):
    check_units(kernels, small_case(Variant(torch.bfloat16, (128, 128), mode)), **UNEVEN, schedule=schedule)


def exercise_pingpong(kernels, schedule):
    """Stream-K units of full tiles, and of an output smaller than a tile with two steps per tap."""
    check_units(kernels, small_case(Variant(torch.bfloat16, (256, 64), "plain")), **UNEVEN, schedule=schedule)
    conv = convolution(torch.bfloat16, 1, 128, 5, 5, 24, 3, 3, 1, 1)
    check_units(kernels, dict(tile=(256, 64), conv=conv), 0, 5, schedule=schedule)


def exercise_finish(kernels, schedule):
    for mode in MODES:
        exercise(mode, kernels, schedule)
    exercise_pingpong(kernels, schedule)


def caught(mutations, mode, *others):
    variants = f"v.tile_m == 128 && {is_mode(mode)}"
    return mutations_of(mutations, fails(functools.partial(exercise, mode)), ("conv_sm90_bf16", *others), variants)


@by_schedule
def test_exercise_passes(kernels, schedule):
    exercise_finish(kernels, schedule)


@each_mutation(
    caught(MUTATIONS, "plain"),
    caught(PROLOGUE_MUTATIONS, "prologue"),
    mutations_of(TAP_MUTATIONS, fails(exercise_pingpong), ("conv_sm90_bf16",), f"v.tile_n == 64 && {is_mode('plain')}"),
    caught(UNIT_MUTATIONS, "projection", "conv_sm90_finish"),
    mutations_of(FINISH_MUTATIONS, fails(exercise_finish), ("conv_sm90_finish",)),
)
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
