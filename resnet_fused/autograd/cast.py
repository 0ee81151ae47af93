"""Tensors as a chain takes them: in the dtype that eager would compute in, or not at all."""

import torch
from torch import Tensor

from .layout import Conv, Norm, Pair


def conv_in(
    dtype: torch.dtype,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Conv | None:
    """A convolution with its weight and bias in ``dtype``, which is autocast's or their own; None of another dtype."""
    if weight.dtype is not dtype or (bias is not None and bias.dtype is not dtype):
        if not torch.is_autocast_enabled(weight.device.type) or weight.dtype is torch.float64:
            return None
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return Conv(weight, bias, stride, padding, dilation, groups)


def norm_in(
    dtype: torch.dtype,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    sync: bool = False,
) -> Norm | None:
    """A BatchNorm of activations in ``dtype``; None where eager would not normalise them by these tensors' dtypes."""
    given = [t for t in (gamma, beta, mean, var) if t is not None]
    if any(not _takes(dtype, t.dtype, given[0].dtype) for t in given):
        return None
    return Norm(gamma, beta, mean, var, eps, sync)


def _takes(x: torch.dtype, own: torch.dtype, first: torch.dtype) -> bool:
    """Whether eager normalises x by this dtype: x's own or, where that is narrower, float32; one for all tensors."""
    return own is first and (own is x or (own is torch.float32 and x is not torch.float64))
