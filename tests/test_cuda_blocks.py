"""Fused blocks on a GPU: eager's answers."""

from __future__ import annotations

import copy

import pytest
import torch
from criterion import assert_close
from support import randomise
from tf32 import by_kind, less_exact
from torch import nn

from resnet_fused import modules

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu

# class, (inplanes, planes) of an identity block, convolutions
CLASSES = [
    (modules.FusedBasicBlock, (64, 64), 2),
    (modules.FusedBottleneck, (256, 64), 3),
    (modules.FusedPreActBlock, (64, 64), 2),
    (modules.FusedPreActBottleneck, (256, 64), 3),
]


def block_of(cls, planes, stride):
    inplanes, planes = planes
    downsample = None
    if stride > 1:
        convolution = nn.Conv2d(inplanes, planes * cls.expansion, 1, stride, bias=False)
        norms = [] if "PreAct" in cls.__name__ else [nn.BatchNorm2d(planes * cls.expansion)]
        downsample = nn.Sequential(convolution, *norms)
    block = cls(inplanes, planes, stride, downsample)
    randomise(block)
    return block.eval().cuda().to(memory_format=torch.channels_last)


def each_block(test):
    test = pytest.mark.parametrize("stride", [1, 2], ids=["identity", "projection"])(test)
    return pytest.mark.parametrize(
        ("cls", "planes", "convolutions"), CLASSES, ids=[cls.__name__ for cls, _, _ in CLASSES]
    )(test)


@each_block
@by_kind
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
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
