"""Cases of sm90/conv_sm90: its tiles, and convolutions of whole steps of 64 channels."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from cuda_on_cpu.conv_fwd import MODES, STATISTICS, Variant

from . import convolution

DTYPES = [torch.float16, torch.bfloat16]
# 256 pixels of 64 channels a warpgroup leave no registers for a projection's sums or a prologue's warpgroup. In modes
# plain and statistics 256x64 is ping-pong: a tile is one warpgroup's, the next the other's.
TILES = {(256, 128): ["plain"], (256, 64): MODES, (128, 128): MODES}
TILES_WITH_STATISTICS = {(256, 128): STATISTICS[:1], (256, 64): STATISTICS, (128, 128): STATISTICS}
# Two blocks: each has several tiles.
ON_HOPPER = dict(family="conv_sm90", sm_count=2)


def variants_of(tiles) -> list[Variant]:
    return [Variant(d, t, m) for d, (t, modes) in itertools.product(DTYPES, tiles.items()) for m in modes]


VARIANTS = variants_of(TILES)
STATISTICS_VARIANTS = variants_of(TILES_WITH_STATISTICS)

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_variant = pytest.mark.parametrize("v", VARIANTS, ids=str)

# The plan leaves padding past the filter to sm80.
GEOMETRIES = {
    name: (n, -(-c // 64) * 64, *rest)
    for name, (n, c, *rest) in convolution.GEOMETRIES.items()
    if name != "padding past the filter"
}

# More tiles than blocks, and a depth of more steps than the ring has stages.
small_convolution = functools.partial(convolution.small_convolution, c=64)
small_case = functools.partial(convolution.small_case, c=64, projected=128)
