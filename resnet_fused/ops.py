"""Typed wrappers of ``torch.ops.resnet_fused.*`` and their fake kernels (shapes and strides without data).

Schemas, argument by argument, are in ``csrc/library.cpp``. These wrappers add nothing: no policy, no
casts, no autograd (that is :mod:`resnet_fused.functional`). Errors come from the compiled checks as
``RuntimeError`` with the offending values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _library  # noqa: F401  registers the ops

conv_bn_act = torch.ops.resnet_fused.conv_bn_act.default
conv_bn_proj_act = torch.ops.resnet_fused.conv_bn_proj_act.default
conv_bn_relu_pool = torch.ops.resnet_fused.conv_bn_relu_pool.default
bn_add_act = torch.ops.resnet_fused.bn_add_act.default
forget_packed = torch.ops.resnet_fused.forget_packed.default
packed_bytes = torch.ops.resnet_fused.packed_bytes.default
explain_cpu = torch.ops.resnet_fused.explain_cpu.default


def _out(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _memory_format(*tensors: Tensor) -> torch.memory_format:
    """torch's own rule: channels_last if any of the tensors suggests it (c10 ``suggest_memory_format``)."""
    last = torch.channels_last
    return last if any(_suggests_channels_last(t) for t in tensors) else torch.contiguous_format


def _suggests_channels_last(x: Tensor) -> bool:
    return torch._prims_common.suggest_memory_format(x) == torch.channels_last


def _conv_output(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    torch._check(x.dim() == 4, lambda: f"x has shape {list(x.shape)}; (N, C, H, W) expected")
    torch._check(weight.device == x.device, lambda: f"weight is on {weight.device} but x is on {x.device}")
    n, _, h, w = x.shape
    k, _, r, s = weight.shape
    shape = (
        n,
        k,
        _out(h, r, stride[0], padding[0], dilation[0]),
        _out(w, s, stride[1], padding[1], dilation[1]),
    )
    return x.new_empty(shape).to(memory_format=_memory_format(x, weight))


@torch.library.register_fake("resnet_fused::conv_bn_act")
def _(x, weight, bias, gamma, beta, mean, var, eps, stride, padding, dilation, groups, residual, relu, keep_packed):
    return _conv_output(x, weight, stride, padding, dilation)


@torch.library.register_fake("resnet_fused::conv_bn_proj_act")
def _(x, weight, bias, gamma, beta, mean, var, eps, stride, padding, dilation, groups, *projection):
    return _conv_output(x, weight, stride, padding, dilation)


@torch.library.register_fake("resnet_fused::conv_bn_relu_pool")
def _(
    x, weight, bias, gamma, beta, mean, var, eps, stride, padding, dilation, groups, kernel, pool_stride, pool_padding,
    keep_packed,
):  # fmt: skip
    y = _conv_output(x, weight, stride, padding, dilation)
    shape = [_out(y.shape[2 + i], kernel[i], pool_stride[i], pool_padding[i]) for i in range(2)]
    return y.new_empty((*y.shape[:2], *shape)).to(memory_format=_memory_format(x, weight))


@torch.library.register_fake("resnet_fused::bn_add_act")
def _(x, gamma, beta, mean, var, eps, residual, relu):
    return x.new_empty(x.shape).to(memory_format=_memory_format(x))
