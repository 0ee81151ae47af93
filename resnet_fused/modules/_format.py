"""Memory formats: kernels work in channels_last, and what others see has the format that eager's would have."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import autograd
from ..autograd import is_channels_last


def convolves_to_channels_last(x: Tensor, conv: nn.Module | None) -> bool:
    """Whether eager's convolution of x would return channels_last: if x or the weight is."""
    return is_channels_last(x) or has_channels_last_weight(conv)


def has_channels_last_weight(conv: nn.Module | None) -> bool:
    weight = None if conv is None else conv._parameters.get("weight")
    return weight is not None and is_channels_last(weight)


def nhwc(x: Tensor) -> Tensor:
    """x in channels_last, where kernels work: between a block's convolutions nothing changes its format."""
    return x.contiguous(memory_format=torch.channels_last)


def nhwc_of_contiguous(x: Tensor) -> Tensor:
    """:func:`nhwc`, the gradient coming back contiguous, as it would if x had stayed so."""
    if _needs_gradient(x) and not x.is_contiguous(memory_format=torch.channels_last):
        return autograd.in_format(x, True)
    return nhwc(x)


def contiguous(x: Any) -> Any:
    """x contiguous, with a contiguous tensor's strides even where a dimension of 0 or 1 leaves them free.

    What a stage returns that is no activation (N, C, H, W) is left as it is.
    """
    if not isinstance(x, Tensor) or x.dim() != 4:
        return x
    if torch.compiler.is_compiling():
        if _needs_gradient(x) and not x.is_contiguous():
            return autograd.in_format(x, False)
        return x.contiguous()
    _, c, h, w = (max(size, 1) for size in x.shape)
    if x.stride() == (c * h * w, h * w, w, 1):
        return x
    return autograd.in_format(x, False) if _needs_gradient(x) else x.clone(memory_format=torch.contiguous_format)


def _needs_gradient(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
