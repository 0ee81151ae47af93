"""sm90/conv_rows (TMA, wgmma, two warpgroups in turn), run thread by thread on the CPU with every access checked."""

from __future__ import annotations

import itertools
import math

import cuda_on_cpu
import pytest
import torch
from cuda_on_cpu.conv_fwd import Variant, run
from cuda_on_cpu.tensors import BatchNorm
from test_cuda_conv import SCHEDULES, batch_norm, check, convolution, eager, randn

if reason := cuda_on_cpu.missing():
    pytest.skip(f"the kernel emulator needs a compiler: {reason}", allow_module_level=True)

DTYPES = [torch.float16, torch.bfloat16]
TILES = [(4, 56), (7, 32), (8, 32), (16, 16)]  # rows, columns
VARIANTS = [Variant(d, t, "plain") for d, t in itertools.product(DTYPES, TILES)]
# Two blocks: each has tiles for both of its consumers, and again.
ON_HOPPER = dict(family="conv_rows", sm_count=2)

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
by_variant = pytest.mark.parametrize("v", VARIANTS, ids=str)


@pytest.fixture(scope="module")
def kernels():
    return cuda_on_cpu.load()


def conv3x3(dtype, n, h, w, **changes):
    return convolution(dtype, n, 64, h, w, 64, 3, 3, padding=1, **changes)


def small_case(v: Variant) -> dict:
    """Nine tiles, three an image, all ragged at the right and each third below: every stage is filled thrice a block."""
    rows, columns = v.tile
    conv = conv3x3(v.dtype, 3, 2 * rows + 1, columns - 7)
    return dict(tile=v.tile, conv=conv, residual=randn(conv.output_shape(), v.dtype, 20))


def test_the_menu_is_what_is_compiled(kernels):
    compiled = [Variant.of(raw) for raw in kernels.compiled_conv_rows()]
    assert len(compiled) == len(set(compiled))
    assert set(compiled) == set(VARIANTS)


@by_variant
@by_schedule
def test_every_variant(kernels, v, schedule):
    case = small_case(v)
    report = check(kernels, **case, schedule=schedule, **ON_HOPPER)
    assert report["bytes_stored"] == math.prod(case["conv"].output_shape()) * 2  # each output once
