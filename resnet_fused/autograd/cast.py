"""Casts the tensors of a chain to the dtype that eager would compute in, if there is one."""

import torch
from torch import Tensor

from .layout import Conv, Norm, Pair


def cast_conv(
    dtype: torch.dtype,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Conv | None:
    """A convolution with weight and bias in ``dtype`` (autocast's or their own); None if eager would not cast to it."""
    if weight.dtype is not dtype or (bias is not None and bias.dtype is not dtype):
        if not torch.is_autocast_enabled(weight.device.type) or weight.dtype is torch.float64:
            return None
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return Conv(weight, bias, stride, padding, dilation, groups)


def cast_norm(
    dtype: torch.dtype,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    sync: bool = False,
) -> Norm | None:
    """A BatchNorm for activations in ``dtype``; None if eager does not support these tensors' dtypes with it."""
    given = [t for t in (gamma, beta, mean, var) if t is not None]
    if any(not _is_supported(dtype, t.dtype, given[0].dtype) for t in given):
        return None
    return Norm(gamma, beta, mean, var, eps, sync)


def _is_supported(x: torch.dtype, own: torch.dtype, first: torch.dtype) -> bool:
    """Whether eager supports a BatchNorm tensor of dtype ``own``: x's dtype or float32, the same for all tensors."""
    return own is first and (own is x or (own is torch.float32 and x is not torch.float64))
