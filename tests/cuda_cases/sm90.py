"""Cases of sm90/conv_sm90: its tiles, and convolutions whose channels are multiples of 64."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from cuda_on_cpu.conv_fwd import MODES, STATISTICS, Variant

from . import convolution

DTYPES = [torch.float16, torch.bfloat16]
# With 256x128, a warpgroup accumulates 256 pixels of 64 channels, which leaves no registers for a projection's
# accumulators or a prologue's warpgroup. In modes plain and statistics 256x64 is ping-pong: the two warpgroups compute
# alternate tiles.
TILES = {(256, 128): ["plain"], (256, 64): MODES, (128, 128): MODES}
TILES_WITH_STATISTICS = {(256, 128): STATISTICS[:1], (256, 64): STATISTICS, (128, 128): STATISTICS}
# Two blocks, so that each has several tiles.
ON_HOPPER = dict(family="conv_sm90", sm_count=2)


def variants_of(tiles) -> list[Variant]:
    return [Variant(d, t, m) for d, (t, modes) in itertools.product(DTYPES, tiles.items()) for m in modes]


VARIANTS = variants_of(TILES)
STATISTICS_VARIANTS = variants_of(TILES_WITH_STATISTICS)

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_variant = pytest.mark.parametrize("v", VARIANTS, ids=str)

# Padding past the filter is planned for sm80 only.
GEOMETRIES = {
    name: (n, -(-c // 64) * 64, *rest)
    for name, (n, c, *rest) in convolution.GEOMETRIES.items()
    if name != "padding past the filter"
}

# More tiles than blocks, and more steps along K than pipeline stages.
small_convolution = functools.partial(convolution.small_convolution, c=64)
small_case = functools.partial(convolution.small_case, c=64, projected=128)
