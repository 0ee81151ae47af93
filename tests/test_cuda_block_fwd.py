"""sm90/block_fwd (a whole identity BasicBlock in one launch), run thread by thread on the CPU, every access checked."""

from __future__ import annotations

import itertools

import cuda_on_cpu
import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from cuda_on_cpu.block_fwd import Block, run
from cuda_on_cpu.conv_fwd import Conv
from cuda_on_cpu.conv_fwd import run as run_conv
from cuda_on_cpu.tensors import DTYPES as ALL_DTYPES
from cuda_on_cpu.tensors import BatchNorm
from test_cuda_conv import SCHEDULES, batch_norm, randn

from resnet_fused import reference

if reason := cuda_on_cpu.missing():
    pytest.skip(f"the kernel emulator needs a compiler: {reason}", allow_module_level=True)

DTYPES = [torch.float16, torch.bfloat16]
CHANNELS = [64]

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_channels = pytest.mark.parametrize("channels", CHANNELS)
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


@pytest.fixture(scope="module")
def kernels():
    return cuda_on_cpu.load()


def block_of(dtype, channels, n, h, w, seed=0, **bn) -> Block:
    def weight(seed):
        values = randn((channels, channels, 3, 3), torch.float32, seed).div_((9 * channels) ** 0.5).to(dtype)
        return values.contiguous(memory_format=torch.channels_last)

    x = randn((n, channels, h, w), dtype, seed)
    bns = (batch_norm(channels, seed + i, **bn) for i in (3, 4))
    return Block(x, weight(seed + 1), next(bns), weight(seed + 2), next(bns))


def eager(block, relu=True, dtype=None):
    """Two convolutions in eager PyTorch; in float64 if dtype says so, what is between them rounded as in x's dtype.

    Padding is explicit, because on a GPU it is multiplied like any zero: an infinite weight makes it NaN.
    """
    own, dtype = block.x.dtype, dtype or block.x.dtype

    def cast(t):
        return None if t is None else t.to(dtype)

    def conv(x, weight, bn, residual, relu):
        # eager takes a float32 BatchNorm under half-precision activations, and none under float64
        affine = [v if v is None or dtype != torch.float64 else v.double() for v in bn[:4]]
        x = F.pad(x, (1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
        geometry = ([1, 1], [0, 0], [1, 1], 1)
        return reference.conv_bn_act(x, cast(weight), cast(bn.bias), *affine, bn.eps, *geometry, residual, relu)

    x = cast(block.x)
    middle = conv(x, block.weight1, block.bn1, None, True)
    return conv(cast(middle.to(own)), block.weight2, block.bn2, x, relu)


def check(kernels, block, **options):
    out, report = run(kernels, block, **options)
    assert report["errors"] == []
    truth = eager(block, dtype=torch.float64)
    assert_close(out, eager(block), truth, eager(block, relu=False, dtype=torch.float64))
    return out, report


def test_the_menu_is_what_is_compiled(kernels):
    compiled = kernels.compiled_block_fwd()
    assert len(compiled) == len(set(compiled))
    assert set(compiled) == {(ALL_DTYPES.index(d), c) for d, c in itertools.product(DTYPES, CHANNELS)}


@by_dtype
@by_channels
@by_schedule
def test_tiles_with_every_kind_of_neighbour(kernels, dtype, channels, schedule):
    """More tiles than teams, the last ones of a row and of a column ragged, two images."""
    block = block_of(dtype, channels, 2, 19, 21)
    out, report = check(kernels, block, schedule=schedule)
    rows, columns, down, across = kernels.tiling_of_block_fwd(channels, 19, 21)
    assert down * across >= 6 and down * rows > 19 and across * columns > 21
    assert report["bytes_stored"] == out.numel() * 2  # each output once
