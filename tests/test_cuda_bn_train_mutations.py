"""Mutations of BatchNorm's training kernels are caught."""

from __future__ import annotations

import itertools

import torch
from cuda_cases.batch_norm import activation
from cuda_cases.training import case, check_backward, check_masked_grad, check_reduce, check_stats
from mutation import by_schedule, each_mutation, fails, mutations_of, order, value

STATS, PARTS, MOMENTS, REDUCE, GRADIENT, APPLY, FINISH, FOLD, HOST, REDUCTION = (
    "cuda/kernels/bn/bn_stats.cuh",
    "cuda/kernels/bn/parts.cuh",
    "cuda/kernels/bn/moments.cuh",
    "cuda/kernels/bn/bn_backward_reduce.cuh",
    "cuda/kernels/bn/bn_gradient.cuh",
    "cuda/kernels/bn/bn_backward.cuh",
    "cuda/kernels/bn/bn_finish.cuh",
    "cuda/kernels/bn/fold.cuh",
    "cuda/kernels/bn/bn_gradient.h",
    "cuda/kernels/bn/reduction.h",
)
STATISTICS_MUTATIONS = {
    "no barrier in fold_slots": order(FOLD, "    ptx::bar_sync_all();\n", ""),
    "fold_slots drops the odd slot": value(FOLD, "half = (width + 1) / 2;", "half = width / 2;"),
    "reads one item past the part's end": value(
        PARTS, "for (; i < at.end; i += slots)", "for (; i <= at.end; i += slots)"
    ),
    "batch step skips items": value(PARTS, "++r, i += kBatch * slots)", "++r, i += (kBatch + 1) * slots)"),
    "run sum overwrites the total": value(PARTS, "total[v] += run[v];", "total[v] = run[v];"),
    "two parts share a workspace slot": order(
        PARTS, "(static_cast<uint64_t>(part) *", "(static_cast<uint64_t>(part / 2) *"
    ),
    "excess lanes not masked": value(PARTS, "inside(lane < loop.all_lanes)", "inside(true)"),
    "last part not clamped to the end": value(
        PARTS,
        "loop.items - part * loop.each < loop.each ? loop.items : (part + 1) * loop.each",
        "(part + 1) * loop.each",
    ),
    "center is always zero": value(STATS, "add.center[c] = center_of(", "add.center[c] = 0 * center_of("),
    "infinite center accepted": value(MOMENTS, "return is_finite(center) ? center : Acc(0);", "return center;"),
    "squares not re-centered on the mean": value(MOMENTS, "squares -= by * (2 * sum - count * by);", ""),
    "one part too many": value(
        REDUCTION, "r.splits = ceil_div(r.items, r.each);", "r.splits = ceil_div(r.items, r.each) + 1;"
    ),
}
SUM_MUTATIONS = {
    "NaN in out closes the mask": value(GRADIENT, "closed = out.get(e) <= Acc(0);", "closed = !(out.get(e) > Acc(0));"),
    "NaN closes the recomputed mask": value(
        GRADIENT,
        "closed = bn.apply(x.get(e), Config::channel_of(e)) <= Acc(kVanishes<Config::kDtype>);",
        "closed = !(bn.apply(x.get(e), Config::channel_of(e)) > Acc(kVanishes<Config::kDtype>));",
    ),
    "mean not subtracted": value(REDUCE, "chunk[b].x.get(e) - mean[c]", "chunk[b].x.get(e)"),
    "BatchNorm vectors of lane 0": value(REDUCE, "bn(from.bn, lane * Config::kChannels)", "bn(from.bn, 0)"),
    "masked gradients of a batch stored at one offset": value(REDUCE, "masked_grad + at[b]", "masked_grad + at[0]"),
    "masked gradient at offset 0 not stored": value(REDUCE, "(masked_grad) Config", "(masked_grad && at[b]) Config"),
    "alignment of the masked gradient not checked": value(HOST, "| reinterpret_cast<uintptr_t>(to);", ";"),
    "alignment of out not checked": value(HOST, "reinterpret_cast<uintptr_t>(g.out) |", ""),
}
GRADIENT_MUTATIONS = {
    "gradient scaled twice": value(
        APPLY,
        "      if (p.sum_g.data) g -= ",
        "      if (p.sum_g.data) g = v.bn.scale[c] * g - v.bn.scale[c] * ",
    ),
    "statistics terms applied to a frozen BatchNorm": value(APPLY, "if (p.sum_g.data) g -=", "if (true) g -="),
    "no bounds check on lanes": value(APPLY, "if (lane >= loop.all_lanes) return;", ""),
}
FINISH_MUTATIONS = {
    "last part counted at full length": value(FINISH, "left < parts.each ? left : parts.each", "parts.each"),
    "one channel past the end": value(
        FINISH, "inside = channel < parts.channels;", "inside = channel <= parts.channels;"
    ),
    "sum not divided by the standard deviation": value(FINISH, "sums.sum[1] * inverse", "sums.sum[1]"),
}


def exercise_statistics(kernels, schedule):
    # 37 items per thread, more than one float32 run; one channel has no finite center
    x = activation((3, 256, 20, 20), torch.bfloat16, True)
    x[0, 1, 0, 0], x[:, 2] = torch.nan, torch.inf
    check_stats(kernels, x, schedule=schedule)
    # 67 lanes in 3 groups; the last part is shorter
    x = activation((2, 268, 3, 7), torch.float32, True) + 1000
    check_stats(kernels, x, schedule=schedule, sm_count=3)


def gradient_with_nan(mask):
    g = case((3, 16, 36, 36), torch.bfloat16, True, mask)
    g.x[0, 3, 5, 5] = torch.nan
    if mask == "out":
        g.out[0, 3, 5, 5] = torch.nan
    return g


def many_lanes():
    """281 lanes, so the last group is partial; a part has only a few rows."""
    return case((2, 2248, 2, 3), torch.bfloat16, True, "out")


def exercise_sums(kernels, schedule):
    for mask in ("recompute", "out"):
        check_reduce(kernels, gradient_with_nan(mask), schedule=schedule)
    check_masked_grad(kernels, gradient_with_nan("out"), schedule=schedule)
    check_reduce(kernels, many_lanes(), schedule=schedule, sm_count=30)
    masked_grad, moved = (activation((2, 8, 4, 4), torch.bfloat16, True, misalign=1) for _ in range(2))
    g = case((2, 8, 4, 4), torch.bfloat16, True, "out")
    check_masked_grad(kernels, g, masked_grad=masked_grad, schedule=schedule)
    check_reduce(kernels, g._replace(out=moved.copy_(g.out)), schedule=schedule)


def exercise_gradient(kernels, schedule):
    for mask, frozen in itertools.product(("recompute", "out"), (False, True)):
        check_backward(kernels, gradient_with_nan(mask), frozen=frozen, schedule=schedule)
    g = many_lanes()
    check_backward(kernels, g, schedule=schedule)
    g.bn.gamma[4] = torch.inf
    check_backward(kernels, g, schedule=schedule)


def exercise_finish(kernels, schedule):
    exercise_statistics(kernels, schedule)
    exercise_sums(kernels, schedule)


@by_schedule
def test_exercise_passes(kernels, schedule):
    exercise_statistics(kernels, schedule)
    exercise_sums(kernels, schedule)
    exercise_gradient(kernels, schedule)


NHWC = "v.layout == Layout::kNHWC"
BF16_MASKED = f"{NHWC} && v.dtype == Dtype::kBFloat16 && v.mask != Mask::kNone"


@each_mutation(
    mutations_of(
        STATISTICS_MUTATIONS,
        fails(exercise_statistics),
        ("bn_stats",),
        f"{NHWC} && (v.dtype == Dtype::kBFloat16 || v.dtype == Dtype::kFloat32) && v.vector > 1",
    ),
    mutations_of(
        SUM_MUTATIONS,
        fails(exercise_sums),
        ("bn_backward_reduce",),
        f"{BF16_MASKED} && (v.vector == 8 || v.mask == Mask::kOut)",
    ),
    mutations_of(
        GRADIENT_MUTATIONS,
        fails(exercise_gradient),
        ("bn_backward",),
        f"{BF16_MASKED} && v.vector == 8",
    ),
    mutations_of(FINISH_MUTATIONS, fails(exercise_finish), ("bn_finish",)),
)
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
