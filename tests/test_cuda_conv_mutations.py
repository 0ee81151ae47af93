"""Mutations of sm80/conv_fwd and conv_finish are caught."""

from __future__ import annotations

import functools

import pytest
import torch
from cuda_cases.convolution import check, deep_projection, small_case
from cuda_on_cpu.conv_fwd import MODES, Variant, is_mode
from mutation import by_schedule, each_mutation, fails, mutations_of, order, value

LOOP, EPILOGUE, KERNEL, FINISH, HOST, IM2COL, MMA = (
    "cuda/kernels/sm80/conv_mainloop.cuh",
    "cuda/kernels/sm80/conv_epilogue.cuh",
    "cuda/kernels/sm80/conv_fwd.cuh",
    "cuda/kernels/sm80/conv_finish.cuh",
    "cuda/kernels/sm80/conv_fwd.h",
    "cuda/device/tile/im2col.cuh",
    "cuda/device/tile/warp_mma.cuh",
)
BARRIER = "    ptx::bar_sync_all();\n    if (step + kStages - 1 < last)"
TF32_MUTATIONS = {
    "operands not rounded to TF32": value(MMA, "if constexpr (kDtype == Dtype::kFloat32) round_to_tf32(two);", ""),
}
FINISH_MUTATIONS = {
    "last split-K slice not added": value(
        FINISH,
        "for (int32_t s = 1; s < p.splits; ++s)",
        "for (int32_t s = 1; s + 1 < p.splits; ++s)",
    ),
    "projection slice added to the main sum": value(
        FINISH,
        "s < p.splits; ++s)",
        "s < p.splits + Config::kProjects; ++s)",
    ),
}
MUTATIONS = {
    "no barrier in the main-loop step": order(LOOP, BARRIER, "    if (step + kStages - 1 < last)"),
    "one warp skips a barrier": order(LOOP, BARRIER, "    if (step != first + 1 || part)" + BARRIER[3:]),
    "cp.async wait leaves one group too many pending": order(
        LOOP, "cp_async_wait_group<kStages - 2>", "cp_async_wait_group<kStages - 1>"
    ),
    "a stage overwritten while it is read": order(LOOP, "free_stage = kStages - 1;", "free_stage = 0;"),
    "empty cp.async groups not committed": order(
        LOOP,
        "ptx::cp_async_commit_group();\n    warp.multiply",
        "if (step + kStages - 1 < last) ptx::cp_async_commit_group();\n    warp.multiply",
    ),
    "no barrier after the main loop": order(
        LOOP,
        "  ptx::cp_async_wait_group<0>();\n  ptx::bar_sync_all();",
        "  ptx::cp_async_wait_group<0>();",
    ),
    "weight rows past the last not masked": value(
        LOOP, "inside && n0 + row + i * Config::kCopyRows < shape.k", "inside"
    ),
    "chunks past the last tap not masked": value(IM2COL, "return row < shape.r;", "return true;"),
    "reads one column right of the image": value(
        IM2COL,
        "static_cast<uint32_t>(shape.w)) taps[i] |= 0x10000u << s;",
        "static_cast<uint32_t>(shape.w + 1)) taps[i] |= 0x10000u << s;",
    ),
    "reads one row below the image": value(
        IM2COL,
        "static_cast<uint32_t>(h + r * shape.dil_h) < static_cast<uint32_t>(shape.h)",
        "static_cast<uint32_t>(h + r * shape.dil_h) <= static_cast<uint32_t>(shape.h)",
    ),
    "one pixel past the end not masked": value(IM2COL, "if (m >= pixels) continue;", "if (m > pixels) continue;"),
    "tap column restarts at 1": value(
        IM2COL,
        "if (++col == shape.s) col = 0, ++row;",
        "if (++col == shape.s) ++row, col = 1;",
    ),
    "ldmatrix reads the wrong chunk of A": value(
        MMA, "lane % 16, k * 2 + lane / 16)", "lane % 16, (k * 2 + lane / 16) ^ 1)"
    ),
    "ldmatrix swaps fragments of B": value(
        MMA,
        "lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2",
        "lane % 8 + lane / 8 % 2 * 8, k * 2 + lane / 16",
    ),
    "shared memory 64 bytes too small": value(HOST, "return tile.stages *", "return -64 + tile.stages *"),
    "prologue applied twice, no barrier after it": order(
        LOOP,
        "    ptx::bar_sync_all();\n    if (step + kStages - 1 < last)",
        "    prologue.apply(a_tile, row, column);\n    if (step + kStages - 1 < last)",
    ),
    "no warp barrier before the epilogue reads its slab": order(
        EPILOGUE,
        "(projected.sum[i], place.lane);\n      ptx::bar_warp_sync(~0u);",
        "(projected.sum[i], place.lane);",
    ),
    "a slab overwritten while it is read": order(
        EPILOGUE,
        "      ptx::bar_warp_sync(~0u);  // before the next",
        "      // before the next",
    ),
    "only half a warp at the warp barrier": order(
        EPILOGUE,
        "      ptx::bar_warp_sync(~0u);  // before the next",
        "      if (place.lane < 16) ptx::bar_warp_sync(~0u);  // before the next",
    ),
    "epilogue stores one pixel past the end": value(
        EPILOGUE,
        "inside[pass] = m < pixels && place.n < k;",
        "inside[pass] = m <= pixels && place.n < k;",
    ),
    "residual added after ReLU": value(
        EPILOGUE,
        "v[e] += residual[pass].get(e);",
        "v[e] = relu_of(v[e]) + residual[pass].get(e);",
    ),
    "two split-K slices store to one place": order(
        EPILOGUE,
        "static_cast<uint64_t>(slice) * pixels",
        "static_cast<uint64_t>(slice / 2) * pixels",
    ),
    "first split-K slice skips its last step": value(
        KERNEL, "part(slice), part(slice + 1));", "part(slice), part(slice + 1) - (slice == 0));"
    ),
}
PROLOGUE_MUTATIONS = {
    "prologue applied to padding": value(LOOP, "if (!(rows >> i & 1)) continue;", ""),
    "prologue uses another stage's padding mask": value(
        LOOP,
        "kRowsA * (Config::kStages - 2)));",
        "kRowsA * (Config::kStages - 3)));",
    ),
    "no barrier before the prologue reads its table": order(
        KERNEL, "    ptx::bar_sync_all();  // the first step", "    // the first step"
    ),
}
PROJECTION_MUTATIONS = {
    "projection uses the main BatchNorm": value(
        EPILOGUE,
        "v[e] += projection_bn.apply(shortcut[e], e)",
        "v[e] += bn.apply(shortcut[e], e)",
    ),
}
DEPTH_MUTATIONS = {
    "projection runs the main convolution's step count": value(
        KERNEL, "steps_of<Config>(p.projection.shape)", "steps_of<Config>(p.main.shape)"
    ),
}


def exercise(kernels, schedule, mode="plain", dtype=torch.bfloat16, splits=(1, 3)):
    """Runs with and without split-K, with partial tiles in every dimension."""
    for n in splits:
        check(kernels, **small_case(Variant(dtype, (64, 64), mode), n=1), splits=n, schedule=schedule)


def exercise_depth(kernels, schedule):
    check(kernels, **deep_projection(torch.bfloat16, (64, 64)), schedule=schedule)


def exercise_splits(kernels, schedule):
    for mode in MODES:
        exercise(kernels, schedule, mode, splits=(3,))


def caught(mutations, source="conv_fwd_bf16", mode="plain", dtype=torch.bfloat16):
    variants = f"v.tile_m == 64 && {is_mode(mode)}"
    return mutations_of(mutations, fails(functools.partial(exercise, mode=mode, dtype=dtype)), (source,), variants)


@by_schedule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_exercise_passes(kernels, schedule, dtype):
    for mode in MODES:
        exercise(kernels, schedule, mode, dtype)
    exercise_depth(kernels, schedule)


@each_mutation(
    caught(MUTATIONS),
    caught(PROLOGUE_MUTATIONS, mode="prologue"),
    caught(PROJECTION_MUTATIONS, mode="projection"),
    mutations_of(
        DEPTH_MUTATIONS,
        fails(exercise_depth),
        ("conv_fwd_bf16",),
        f"v.tile_m == 64 && {is_mode('projection')}",
    ),
    caught(TF32_MUTATIONS, "conv_fwd_tf32", dtype=torch.float32),
    mutations_of(FINISH_MUTATIONS, fails(exercise_splits), ("conv_finish",)),
)
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
