"""sm90/block_fwd (an identity BasicBlock in one launch) on the emulator, which checks every access."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from cuda_cases.batch_norm import batch_norm, batch_norm_kinds
from cuda_cases.convolution import assert_same_nonfinite, randn
from cuda_cases.sm90 import DTYPES, by_dtype
from cuda_on_cpu.block_fwd import Block, run
from cuda_on_cpu.conv_fwd import Conv
from cuda_on_cpu.conv_fwd import run as run_conv
from cuda_on_cpu.tensors import DTYPES as ALL_DTYPES
from cuda_on_cpu.tensors import BatchNorm
from mutation import by_schedule, each_mutation, fails, mutations_of, order, value

from resnet_fused import reference

CHANNELS = [64, 128]
# (h, w): more tiles than teams, with partial tiles at the right and bottom edges. With 128 channels the number of tiles
# is odd, so one CTA of the last cluster has none.
SIZE = {64: (19, 21), 128: (17, 20)}

by_channels = pytest.mark.parametrize("channels", CHANNELS)


def block_of(dtype, channels, n, h, w, seed=0, **bn) -> Block:
    def weight(seed):
        values = randn((channels, channels, 3, 3), torch.float32, seed).div_((9 * channels) ** 0.5).to(dtype)
        return values.contiguous(memory_format=torch.channels_last)

    x = randn((n, channels, h, w), dtype, seed)
    bns = (batch_norm(channels, seed=seed + i, **bn) for i in (3, 4))
    return Block(x, weight(seed + 1), next(bns), weight(seed + 2), next(bns))


def eager(block, relu=True, dtype=None):
    """Computes the two convolutions in eager PyTorch, in `dtype` if given.

    Pads explicitly: on a GPU, padding is multiplied like any other zero, so an infinite weight gives NaN.
    """
    dtype = dtype or block.x.dtype

    def cast(t):
        return None if t is None else t.to(dtype)

    def conv(x, weight, bn, residual, relu):
        # eager accepts a float32 BatchNorm with half-precision activations, but not with float64
        affine = [v if v is None or dtype != torch.float64 else v.double() for v in bn[:4]]
        x = F.pad(x, (1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
        geometry = ([1, 1], [0, 0], [1, 1], 1)
        return reference.conv_bn_act(x, cast(weight), cast(bn.bias), *affine, bn.eps, *geometry, residual, relu)

    x = cast(block.x)
    middle = conv(x, block.weight1, block.bn1, None, True)
    return conv(middle, block.weight2, block.bn2, x, relu)


def check(kernels, block, **options):
    out, report = run(kernels, block, **options)
    assert report["errors"] == []
    truth = eager(block, dtype=torch.float64)
    assert_close(out, eager(block), truth, eager(block, relu=False, dtype=torch.float64))
    return out, report


def test_compiled_variants_are_the_listed_ones(kernels):
    compiled = kernels.compiled_block_fwd()
    assert len(compiled) == len(set(compiled))
    assert set(compiled) == {(ALL_DTYPES.index(d), c) for d, c in itertools.product(DTYPES, CHANNELS)}


@by_dtype
@by_channels
@by_schedule
def test_tiles_with_all_neighbours(kernels, dtype, channels, schedule):
    h, w = SIZE[channels]
    block = block_of(dtype, channels, 2, h, w)
    out, report = check(kernels, block, schedule=schedule)
    rows, columns, down, across = kernels.tiling_of_block_fwd(channels, h, w)
    assert down * across > 6 and (channels == 64 or down * across % 2) and down * rows > h and across * columns > w
    assert report["bytes_stored"] == out.numel() * 2  # each output once


# n, h, w
SIZES = {
    "one pixel": (1, 1, 1),
    "one row": (2, 1, 45),
    "one column": (2, 30, 1),
    "exactly one tile": (1, 8, 8),
    "one pixel more than a tile": (1, 9, 9),
    "7x7": (3, 7, 7),
    "56 columns": (1, 3, 56),
    "image smaller than the halo": (3, 2, 2),
}


@by_dtype
@by_channels
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_sizes(kernels, dtype, channels, size):
    check(kernels, block_of(dtype, channels, *size))


@by_channels
@pytest.mark.parametrize("sm_count", [1, 3, 64])
def test_sm_counts(kernels, channels, sm_count):
    """All tiles in one CTA, several tiles per CTA, and more CTAs than tiles."""
    check(kernels, block_of(torch.bfloat16, channels, 1, 17, 20), sm_count=sm_count)


@by_dtype
@by_channels
def test_matches_two_launches_bitwise(kernels, dtype, channels):
    """Accumulates in the order of conv_sm90 and rounds the intermediate activation as if it were stored."""
    block = block_of(dtype, channels, 1, 10, 13)
    tile = (256, 64) if channels == 64 else (128, 128)
    options = dict(family="conv_sm90")
    first = Conv(block.x, block.weight1, block.bn1, padding=(1, 1))
    middle, _ = run_conv(kernels, tile, first, **options)
    second = Conv(middle, block.weight2, block.bn2, padding=(1, 1))
    want, _ = run_conv(kernels, tile, second, residual=block.x, **options)
    got, _ = run(kernels, block)
    assert torch.equal(got, want)


@by_dtype
@by_channels
def test_batch_norm_kinds(kernels, dtype, channels):
    block = block_of(dtype, channels, 1, 5, 6)
    kinds = batch_norm_kinds(channels, dtype)
    for first, second in zip(kinds, kinds[1:] + kinds[:1], strict=True):
        check(kernels, block._replace(bn1=first, bn2=second))


@by_dtype
@by_channels
def test_second_convolution_is_zero_padded(kernels, dtype, channels):
    """The padding is zero, not relu(shift), which BatchNorm and ReLU would give for a zero input."""
    block = block_of(dtype, channels, 1, 9, 10)
    check(kernels, block._replace(bn1=block.bn1._replace(beta=block.bn1.beta + 3)))


@by_dtype
@by_channels
def test_nonfinite_values(kernels, dtype, channels):
    block = block_of(dtype, channels, 2, 10, 9)
    block.x[0, 3, 0, 0], block.x[0, 5, -1, -1], block.x[1, 7, 4, 8] = torch.nan, torch.inf, -torch.inf
    out, report = run(kernels, block)
    assert report["errors"] == []
    assert_same_nonfinite(out, eager(block))


@by_dtype
@by_channels
def test_each_convolution_is_rounded_once(kernels, dtype, channels):
    """With identity weights and no BatchNorm, the first convolution is exact, and relu(x) + x is rounded once."""
    x = randn((1, channels, 9, 9), dtype, 1)
    weight = torch.zeros(channels, channels, 3, 3, dtype=dtype)
    weight[:, :, 1, 1] = torch.eye(channels, dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    out, _ = run(kernels, Block(x, weight, BatchNorm(), weight, BatchNorm()))
    torch.testing.assert_close(out, (x.float().relu() + x.float()).relu().to(dtype), rtol=0, atol=0)


CONFIG, ROLES, KERNEL, HOST, SHAPES, PLANES = (
    "cuda/kernels/sm90/block_fwd_config.cuh",
    "cuda/kernels/sm90/block_fwd_roles.cuh",
    "cuda/kernels/sm90/block_fwd.cuh",
    "cuda/kernels/sm90/block_fwd_variants.cuh",
    "cuda/kernels/sm90/block_fwd.h",
    "cuda/device/tile/planes.cuh",
)
MUTATIONS = {
    "padding of the second convolution not zeroed": value(
        ROLES,
        "v[e] = inside ? bn.apply(sum[j * 4 + e], e / 2 % 2) : 0.0f;",
        "v[e] = bn.apply(sum[j * 4 + e], e / 2 % 2);",
    ),
    "padding test off by one column": value(
        ROLES,
        "const int32_t y0 = scheduler.y() - 1, x0 = scheduler.x() - 1;",
        "const int32_t y0 = scheduler.y() - 1, x0 = scheduler.x();",
    ),
    "patch off by one row": value(ROLES, "y0 = scheduler.y() - 2,", "y0 = scheduler.y() - 1,"),
    "patch lacks its last halo row": order(
        ROLES,
        "(scheduler.tiling.rows + 4) * scheduler.tiling.pitch",
        "(scheduler.tiling.rows + 3) * scheduler.tiling.pitch",
    ),
    "tile pitch one column too small": order(
        SHAPES, "even_columns, even_columns + 4,", "even_columns, even_columns + 3,"
    ),
    "no fence.proxy.async after the patch is loaded": order(
        ROLES,
        "      ptx::fence_proxy_async();  // wgmma reads through the async proxy\n",
        "",
    ),
    "loader does not wait for its cp.async": order(ROLES, "      ptx::cp_async_wait_group<0>();\n", ""),
    "consumer does not wait for the patch": order(
        ROLES,
        "      ptx::mbarrier_wait_parity(barriers.full(team), parity);\n",
        "",
    ),
    "a patch refilled while it is read": order(
        ROLES,
        "      ptx::mbarrier_wait_parity(barriers.empty(team), parity ^ 1);\n",
        "",
    ),
    "wrong parity in the wait for an empty patch": order(
        ROLES, "barriers.empty(team), parity ^ 1)", "barriers.empty(team), parity)"
    ),
    "the patch released before the shortcut is read": order(
        ROLES,
        "      ptx::bar_warp_sync(~0u);\n      if (lane == 0) ptx::mbarrier_arrive(barriers.empty(team));",
        "      if (lane == 0) ptx::mbarrier_arrive(barriers.empty(team));",
    ),
    "empty barrier expects one warp's arrival": order(
        KERNEL,
        "barriers.empty(team), Config::kTeamThreads / 32)",
        "barriers.empty(team), 1)",
    ),
    "no fence.proxy.async after the intermediate is stored": order(
        ROLES,
        "    ptx::fence_proxy_async();  // wgmma reads the intermediate through the async proxy\n",
        "",
    ),
    "no barrier before the second convolution": order(
        ROLES,
        "    ptx::bar_sync(1 + team, Config::kTeamThreads);\n    float sum",
        "    float sum",
    ),
    "no barrier after the second convolution": order(
        ROLES,
        "    ptx::bar_sync(1 + team, Config::kTeamThreads);  // the team has read the intermediate\n",
        "",
    ),
    "no warp barrier before the output is read": order(
        ROLES,
        "  ptx::bar_warp_sync(~0u);\n  const PositionGrid grid",
        "  const PositionGrid grid",
    ),
    "no wait for the weights": order(
        ROLES,
        "      ptx::mbarrier_wait_parity(barriers.weights(at.stage), at.parity);\n      ptx::wgmma_fence();\n",
        "      ptx::wgmma_fence();\n",
    ),
    "second convolution uses the first's weights": value(
        ROLES,
        "maps.weight[i / Config::kStepsOfConv % 2];",
        "maps.weight[0];",
    ),
    "weight barrier expects too few bytes": order(
        ROLES,
        "arrive_expect_tx(full, Config::kStageBytes)",
        "arrive_expect_tx(full, Config::kStageBytes - 128)",
    ),
    "no wgmma fence": order(ROLES, "      ptx::wgmma_fence();\n", ""),
    "no wait for the last wgmmas": order(ROLES, "  ptx::wgmma_wait_group<0>();\n", ""),
    "a tap's column off by one": value(ROLES, "tap / 3 * pitch + tap % 3));", "tap / 3 * pitch + (tap % 3 + 1) % 3));"),
    "rows and columns of taps swapped": value(ROLES, "tap / 3 * pitch + tap % 3));", "tap % 3 * pitch + tap / 3));"),
    "wrong plane pitch in the descriptor": value(
        PLANES,
        "at(chunk, position), kPlaneBytes, 8",
        "at(chunk, position), kPlaneBytes - 16, 8",
    ),
    "wrong eight-row stride in the descriptor": value(
        PLANES, "kPlaneBytes, 8 * kChunkBytes)", "kPlaneBytes, 9 * kChunkBytes)"
    ),
    "descriptor strides swapped": value(PLANES, "kPlaneBytes, 8 * kChunkBytes)", "8 * kChunkBytes, kPlaneBytes)"),
    "shortcut off by one column": value(ROLES, "rows.position + 2 * pitch + 2));", "rows.position + 2 * pitch + 1));"),
    "shortcut added after ReLU": value(
        ROLES,
        "    for (int e = 0; e < 8; ++e) v[e] = bn.apply(sum[i * 8 + e], e / 2 % 2) + shortcut[i].get(e);\n"
        "    Pair packed;\n    Pair::pack_relu(packed.words, v);",
        "    for (int e = 0; e < 8; ++e) v[e] = relu_of(bn.apply(sum[i * 8 + e], e / 2 % 2)) + shortcut[i].get(e);\n"
        "    Pair packed;\n    Pair::pack(packed.words, v);",
    ),
    "shortcut not added": value(ROLES, " + shortcut[i].get(e);", ";"),
    "stores columns of the next tile": value(ROLES, "column >= scheduler.tiling.columns ||", ""),
    "stores rows below the image": value(ROLES, " || y >= p.h ||", " ||"),
    "unloaded positions not zeroed": order(KERNEL, "    ptx::st_shared_v4(smem + at, zeros);", "    ;"),
    "no barrier after mbarrier init": order(
        KERNEL,
        "  sync_cluster<Config>();\n\n  // Registers move",
        "\n  // Registers move",
    ),
    "weight tensor map without swizzle": value(HOST, "box.swizzle = Swizzle::k128;", "box.swizzle = Swizzle::kNone;"),
    "both teams take the same tiles": order(
        CONFIG,
        "tile(blockIdx.x + team * gridDim.x) {}",
        "tile(blockIdx.x + team * 0 * gridDim.x) {}",
    ),
}
CLUSTER_MUTATIONS = {
    "no wait for a free stage": order(
        ROLES,
        "ptx::mbarrier_wait_parity(barriers.free(at.stage), at.parity ^ 1);",
        ";",
    ),
    "a stage released while it is multiplied": order(
        ROLES, "ptx::wgmma_wait_group<1>();", "ptx::wgmma_wait_group<2>();"
    ),
    "both stage releases go to the own CTA": order(
        ROLES,
        "ptx::mapa(barriers.free(stage), lane)",
        "ptx::mapa(barriers.free(stage), ptx::cluster_rank())",
    ),
    "stage not released in the other CTA": order(
        ROLES,
        "if (lane < Config::kCluster) ptx::mbarrier",
        "if (lane < 1) ptx::mbarrier",
    ),
    "free barrier expects one CTA's arrivals": order(
        KERNEL,
        "ptx::mbarrier_init(barriers.free(i), Config::kCluster * Config::kConsumers / 32);",
        "ptx::mbarrier_init(barriers.free(i), Config::kConsumers / 32);",
    ),
    "weights multicast only to the own CTA": order(
        ROLES,
        "rank * kShare, (1 << Config::kCluster) - 1);",
        "rank * kShare, 1 << rank);",
    ),
    "multicast mask has a CTA outside the cluster": order(
        ROLES,
        "rank * kShare, (1 << Config::kCluster) - 1);",
        "rank * kShare, (2 << Config::kCluster) - 1);",
    ),
    "both CTAs' shares stored at one offset": order(ROLES, " + rank * kShare * kRowBytes;", ";"),
    "both CTAs load the same share": value(ROLES, "depth, rank * kShare,", "depth, 0,"),
    "CTA without a tile does not release its stages": order(
        ROLES,
        "      if constexpr (!Config::kKeepsWeights) pass_weights<Config>(lane, barriers, at);\n",
        "",
    ),
    "no cluster barrier after mbarrier init": order(
        KERNEL,
        "  sync_cluster<Config>();\n\n  // Registers move",
        "  ptx::bar_sync_all();\n\n  // Registers move",
    ),
    "CTA exits before its cluster is done": order(
        KERNEL,
        "    sync_cluster<Config>();\n  }\n",
        "  }\n",
    ),
}


def exercise(channels, kernels, schedule):
    """Covers several tiles per team, every border, and a shift that shows up wherever padding is not zero."""
    block = block_of(torch.bfloat16, channels, 1, *SIZE[channels])
    check(kernels, block._replace(bn1=block.bn1._replace(beta=block.bn1.beta + 2)), schedule=schedule, sm_count=1)


def caught(mutations, channels):
    check = fails(functools.partial(exercise, channels))
    return mutations_of(mutations, check, ("block_fwd_bf16",), f"v.channels == {channels}")


@by_schedule
def test_exercise_passes(kernels, schedule):
    for channels in CHANNELS:
        exercise(channels, kernels, schedule)


@each_mutation(caught(MUTATIONS, 64), caught(CLUSTER_MUTATIONS, 128))
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
