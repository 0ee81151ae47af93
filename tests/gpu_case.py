"""Helpers of the GPU tests: random arguments of ops, blocks, and eager results with TF32 inputs."""

import pytest
import torch
from support import randomise
from torch import nn

from resnet_fused import criterion, modules

FORMATS = [torch.contiguous_format, torch.channels_last]
by_format = pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])

# dtype, and whether float32 convolutions may use TF32
KINDS = [(torch.float16, False), (torch.bfloat16, False), (torch.float32, False), (torch.float32, True)]
by_kind = pytest.mark.parametrize(("dtype", "tf32"), KINDS, ids=["float16", "bfloat16", "float32", "tf32"])

# class, (inplanes, planes) of an identity block, number of convolutions
CLASSES = [
    (modules.FusedBasicBlock, (64, 64), 2),
    (modules.FusedBottleneck, (256, 64), 3),
    (modules.FusedPreActBlock, (64, 64), 2),
    (modules.FusedPreActBottleneck, (256, 64), 3),
]


def less_exact(eager, truth, in_float64):
    """Returns the less exact of eager's result and ``in_float64()`` with TF32 inputs.

    cuDNN may or may not have rounded eager's inputs to TF32.
    """
    with criterion.TF32Factors():
        in_tf32 = in_float64().float()
    return max(eager, in_tf32, key=lambda y: (y - truth).abs().max())


def randn(*shape, dtype=torch.float32, memory_format=torch.contiguous_format, device="cuda"):
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format)


def batch_norm(c, dtype, device="cuda"):
    """Returns gamma, beta, mean, var, eps."""
    low_high = [(0.5, 1.5), (-1, 1), (-1, 1), (0.5, 2)]
    return [(torch.rand(c, device=device) * (b - a) + a).to(dtype) for a, b in low_high] + [1e-3]


def conv_args(shape, dtype, memory_format):
    """Returns the arguments of conv_bn_act up to ``groups``, and the output shape."""
    n, c, h, w, k, r, stride, padding, dilation = shape
    x = randn(n, c, h, w, dtype=dtype, memory_format=memory_format)
    weight = randn(k, c, r, r, dtype=dtype, memory_format=memory_format) / (c * r * r) ** 0.5
    bias, bn = randn(k, dtype=dtype), batch_norm(k, torch.float32)
    out = [(size + 2 * padding - dilation * (r - 1) - 1) // stride + 1 for size in (h, w)]
    return [x, weight, bias, *bn, [stride] * 2, [padding] * 2, [dilation] * 2, 1], (n, k, *out)


def block_of(cls, planes, stride, device="cuda"):
    inplanes, planes = planes
    downsample = None
    if stride > 1:
        convolution = nn.Conv2d(inplanes, planes * cls.expansion, 1, stride, bias=False)
        norms = [] if "PreAct" in cls.__name__ else [nn.BatchNorm2d(planes * cls.expansion)]
        downsample = nn.Sequential(convolution, *norms)
    block = cls(inplanes, planes, stride, downsample)
    randomise(block)
    return block.eval().to(device, memory_format=torch.channels_last)


def each_block(test):
    test = pytest.mark.parametrize("stride", [1, 2], ids=["identity", "projection"])(test)
    return pytest.mark.parametrize(
        ("cls", "planes", "convolutions"), CLASSES, ids=[cls.__name__ for cls, _, _ in CLASSES]
    )(test)
