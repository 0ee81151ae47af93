"""Memory format helpers: kernels run in channels_last, while tensors visible to user code have eager's format."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import autograd
from ..autograd import is_channels_last


def conv_outputs_channels_last(x: Tensor, conv: nn.Module | None) -> bool:
    """Whether eager's convolution of x returns channels_last: if x or the weight is channels_last."""
    return is_channels_last(x) or has_channels_last_weight(conv)


def has_channels_last_weight(conv: nn.Module | None) -> bool:
    weight = None if conv is None else conv._parameters.get("weight")
    return weight is not None and is_channels_last(weight)


def nhwc(x: Tensor) -> Tensor:
    """x in channels_last, the layout of the kernels. Nothing between a block's convolutions changes the layout."""
    return x.contiguous(memory_format=torch.channels_last)


def nhwc_with_contiguous_grad(x: Tensor) -> Tensor:
    """:func:`nhwc`, but the gradient of a contiguous x is contiguous, as in eager."""
    if _needs_gradient(x) and not x.is_contiguous(memory_format=torch.channels_last):
        return autograd.in_format(x, True)
    return nhwc(x)


def contiguous(x: Any) -> Any:
    """x in contiguous format with exactly the default strides, even for dimensions of size 0 or 1.

    Anything that is not a 4-d tensor is returned unchanged.
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
