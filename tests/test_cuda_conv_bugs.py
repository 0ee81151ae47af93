"""Bugs planted in sm80/conv_fwd and conv_finish: each is caught, whatever the schedule."""

from __future__ import annotations

import cuda_on_cpu
import pytest
import torch
from cuda_cases.convolution import check, convolution, randn, small_case
from cuda_on_cpu.conv_fwd import MODES, Variant
from planting import SCHEDULES, assert_caught

LOOP, EPILOGUE, KERNEL, FINISH, HOST, IM2COL, MMA = (
    "cuda/sm80/conv_mainloop.cuh",
    "cuda/sm80/conv_epilogue.cuh",
    "cuda/sm80/conv_fwd.cuh",
    "cuda/sm80/conv_finish.cuh",
    "cuda/sm80/conv_fwd.h",
    "cuda/tile/im2col.cuh",
    "cuda/tile/warp_mma.cuh",
)
BARRIER = "    ptx::bar_sync_all();\n    if (step + kStages - 1 < last)"
TF32 = "float32 not rounded"
PLANTS = {
    "the step's barrier dropped": (LOOP, BARRIER, "    if (step + kStages - 1 < last)"),
    "one warp skips a barrier": (LOOP, BARRIER, "    if (step != first + 1 || part)" + BARRIER[3:]),
    "a wait one group short": (LOOP, "cp_async_wait_group<kStages - 2>", "cp_async_wait_group<kStages - 1>"),
    "a stage overwritten while it is read": (LOOP, "free_stage = kStages - 1;", "free_stage = 0;"),
    "no group where nothing is copied": (
        LOOP,
        "ptx::cp_async_commit_group();\n    warp.multiply",
        "if (step + kStages - 1 < last) ptx::cp_async_commit_group();\n    warp.multiply",
    ),
    "the ring not free on return": (
        LOOP,
        "  ptx::cp_async_wait_group<0>();\n  ptx::bar_sync_all();",
        "  ptx::cp_async_wait_group<0>();",
    ),
    "the weights' last rows": (LOOP, "inside && n0 + row + i * Config::kCopyRows < shape.k", "inside"),
    "the depth's last chunks": (IM2COL, "return row < shape.r;", "return true;"),
    "a halo column too wide": (
        IM2COL,
        "static_cast<uint32_t>(shape.w)) taps[i] |= 0x10000u << s;",
        "static_cast<uint32_t>(shape.w + 1)) taps[i] |= 0x10000u << s;",
    ),
    "a halo row too far": (
        IM2COL,
        "static_cast<uint32_t>(h + r * shape.dil_h) < static_cast<uint32_t>(shape.h)",
        "static_cast<uint32_t>(h + r * shape.dil_h) <= static_cast<uint32_t>(shape.h)",
    ),
    "pixels past the last": (IM2COL, "if (m >= pixels) continue;", "if (m > pixels) continue;"),
    "columns of taps in the wrong order": (
        IM2COL,
        "if (++col == shape.s) col = 0, ++row;",
        "if (++col == shape.s) ++row, col = 1;",
    ),
    "the wrong swizzle": (MMA, "lane % 16, k * 2 + lane / 16)", "lane % 16, (k * 2 + lane / 16) ^ 1)"),
    "the halves of B swapped": (
        MMA,
        "lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2",
        "lane % 8 + lane / 8 % 2 * 8, k * 2 + lane / 16",
    ),
    TF32: (MMA, "if constexpr (kDtype == Dtype::kFloat32) round_to_tf32(two);", ""),
    "shared memory 64 bytes short": (HOST, "return tile.stages *", "return -64 + tile.stages *"),
    "padding gets the prologue": (LOOP, "if (!(rows >> i & 1)) continue;", ""),
    "the prologue looks at another stage's padding": (
        LOOP,
        "kRowsA * (Config::kStages - 2)));",
        "kRowsA * (Config::kStages - 3)));",
    ),
    "the prologue twice, and no barrier after it": (
        LOOP,
        "    ptx::bar_sync_all();\n    if (step + kStages - 1 < last)",
        "    prologue.apply(a_tile, row, column);\n    if (step + kStages - 1 < last)",
    ),
    "the prologue before its table": (KERNEL, "    ptx::bar_sync_all();  // the first step", "    // the first step"),
    "an epilogue's warp barrier dropped": (
        EPILOGUE,
        "(projected->sum[i], place.lane);\n    ptx::bar_warp_sync(~0u);",
        "(projected->sum[i], place.lane);",
    ),
    "a slab overwritten while it is read": (
        EPILOGUE,
        "    ptx::bar_warp_sync(~0u);  // before the next",
        "    // before the next",
    ),
    "half a warp at a barrier": (
        EPILOGUE,
        "    ptx::bar_warp_sync(~0u);  // before the next",
        "    if (place.lane < 16) ptx::bar_warp_sync(~0u);  // before the next",
    ),
    "a pixel too many stored": (
        EPILOGUE,
        "inside[pass] = m < pixels && place.n < k;",
        "inside[pass] = m <= pixels && place.n < k;",
    ),
    "the projection's own BatchNorm": (
        EPILOGUE,
        "v[e] += projection_bn.apply(shortcut[e], e)",
        "v[e] += bn.apply(shortcut[e], e)",
    ),
    "the residual after ReLU": (
        EPILOGUE,
        "v[e] += residual[pass].get(e);",
        "v[e] = relu_of(v[e]) + residual[pass].get(e);",
    ),
    "two slices in one place": (
        EPILOGUE,
        "static_cast<uint64_t>(slice) * pixels",
        "static_cast<uint64_t>(slice / 2) * pixels",
    ),
    "a step in no slice": (KERNEL, "part(slice), part(slice + 1));", "part(slice), part(slice + 1) - (slice == 0));"),
    "a slice left out": (
        FINISH,
        "for (int32_t s = 1; s < p.splits; ++s)",
        "for (int32_t s = 1; s + 1 < p.splits; ++s)",
    ),
    "the projection's slice added with the others": (
        FINISH,
        "s < p.splits; ++s)",
        "s < p.splits + Config::kProjects; ++s)",
    ),
}
#: Only what these sources hold is compiled with the bug: all that exercise() runs.
ONLY = ("conv_fwd_bf16", "conv_finish")


def exercise(kernels, schedule, dtype=torch.bfloat16):
    """What every planted bug must fail: every mode, whole and split, on ragged sizes; and a depth of many steps."""
    for mode in MODES:
        for splits in (1, 3):
            check(kernels, **small_case(Variant(dtype, (64, 64), mode), n=1), splits=splits, schedule=schedule)
    deep = convolution(dtype, 1, 128, 8, 8, 64, 3, 3, 1, 1, prologue=True)
    check(kernels, (128, 64), deep, residual=randn(deep.output_shape(), dtype, 9), schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_planted_bugs_have_something_to_break(kernels, schedule):
    exercise(kernels, schedule)


def plant(bug):
    return cuda_on_cpu.Plant(*PLANTS[bug]), ("conv_fwd_tf32",) if bug == TF32 else ONLY


@pytest.mark.parametrize("bug", PLANTS)
def test_planted_bugs_are_caught(planted, bug):
    assert_caught(planted(bug), exercise, torch.float32 if bug == TF32 else torch.bfloat16)
