"""BatchNorms and activations for the emulated kernels, in every dtype, format and alignment."""

from __future__ import annotations

import pytest
import torch
from cuda_on_cpu.tensors import DTYPES, BatchNorm

from resnet_fused import reference

REDUCED = [torch.float16, torch.bfloat16]
# dtype and elements per access: 16 bytes if the tensor allows it, else one element
WIDTHS = [(d, v) for d in DTYPES for v in (16 // d.itemsize, 1) if d != torch.float64 or v == 1]

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_format = pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])


def activation(shape, dtype, channels_last, seed=0, misalign=0):
    """A dense activation that starts ``misalign`` elements past a 16-byte boundary."""
    n, c, h, w = shape
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    room = torch.zeros(n * c * h * w + misalign, dtype=dtype)
    strides = (c * h * w, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)
    return room.as_strided(shape, strides, misalign).copy_(values)


def batch_norm(c, dtype=torch.float32, seed=1, stride=1, **changes):
    g = torch.Generator().manual_seed(seed)

    def vector(low, high):
        return (torch.rand(c, generator=g) * (high - low) + low).to(dtype).repeat_interleave(stride)[::stride]

    bn = BatchNorm(vector(0.5, 1.5), vector(-1, 1), vector(-1, 1), vector(0.5, 2), None)
    return bn._replace(**changes)


def batch_norm_kinds(c, dtype):
    """Absent vectors, a bias, strided vectors, zero gamma, vectors in the activations' dtype."""
    bn, wide = batch_norm(c, seed=3), batch_norm(2 * c, seed=5)
    bias = torch.linspace(-1, 1, c)
    kinds = [
        BatchNorm(),
        BatchNorm(bias=bias.to(dtype)),
        bn._replace(gamma=None, beta=None, bias=bias),
        BatchNorm(*(v[::2] for v in wide[:4])),
        bn._replace(gamma=torch.zeros(c)),
    ]
    return kinds if dtype == torch.float32 else [*kinds, batch_norm(c, dtype, seed=6)]


def in_float64(value):
    if isinstance(value, BatchNorm):
        return BatchNorm(*(in_float64(v) for v in value))
    return value.double() if isinstance(value, torch.Tensor) else value


def normalised(x, bn):
    """bn(x + bias) in float64, or x + bias without statistics."""
    n = in_float64(bn)
    y = x.double() if bn.bias is None else x.double() + n.bias.view(-1, 1, 1)
    return y if bn.mean is None else reference.bn_add_act(y, *n[:4], n.eps, relu=False)


def move_from_kink(x, bn, to=3.0):
    """Sets x to ``to`` where bn(x) is so close to 0 that rounding decides the ReLU's mask. Modifies and returns x."""
    x[normalised(x, bn._replace(bias=None)).abs() < 0.04] = to
    return x
