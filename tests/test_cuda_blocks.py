"""Fused blocks on a GPU: eager's answers, in as many launches as the README says."""

from __future__ import annotations

import copy

import pytest
import torch
from criterion import assert_close
from support import randomise
from torch import nn

from resnet_fused import modules

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@torch.no_grad()
def test_matches_eager(cls, planes, convolutions, stride, dtype, memory_format):
    block = block_of(cls, planes, stride).to(dtype)
    x = torch.randn(3, planes[0], 15, 14, device="cuda").to(dtype).contiguous(memory_format=memory_format)
    eager = cls._eager_class.forward(block, x)
    double = copy.deepcopy(block).double()
    truth = cls._eager_class.forward(double, x.double())
    got = block(x)
    assert_close(got, eager, truth)
    assert got.stride() == eager.stride()


@each_block
@torch.no_grad()
def test_launches(cls, planes, convolutions, stride):
    """One launch a convolution: the projection and the pre-activation have none of their own."""
    block = block_of(cls, planes, stride).to(torch.bfloat16)
    x = torch.randn(32, planes[0], 28, 28, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
    block(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        block(x)
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    ours = [name for name in names if "conv_fwd_kernel" in name]
    if not ours:
        pytest.skip("the plan prefers torch's convolution on this GPU")
    assert len(names) == len(ours) == convolutions, names
