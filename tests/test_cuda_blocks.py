"""Fused blocks on a GPU match eager."""

from __future__ import annotations

import copy

import pytest
import torch
from criterion import assert_close
from gpu_case import block_of, by_format, by_kind, each_block, less_exact

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu


@each_block
@by_kind
@by_format
@torch.no_grad()
def test_matches_eager(cls, planes, convolutions, stride, dtype, tf32, memory_format):
    torch.backends.cudnn.allow_tf32 = tf32
    block = block_of(cls, planes, stride).to(dtype)
    x = torch.randn(3, planes[0], 15, 14, device="cuda").to(dtype).contiguous(memory_format=memory_format)
    eager = cls._eager_class.forward(block, x)
    double = copy.deepcopy(block).double()
    truth = cls._eager_class.forward(double, x.double())
    got = block(x)
    assert got.stride() == eager.stride()
    if tf32:
        eager = less_exact(eager, truth, lambda: cls._eager_class.forward(double, x.double()))
    assert_close(got, eager, truth)
