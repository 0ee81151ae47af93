"""Memory format helpers: the format that torch's layers propagate, and conversions that keep gradients' formats."""

from typing import Any

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether torch's layers treat x as channels_last (c10's ``suggest_memory_format``)."""
    if x.dim() != 4:
        return False
    last = x.is_contiguous(memory_format=torch.channels_last)
    if last != x.is_contiguous():
        return last
    if torch.compiler.is_compiling():
        return torch._prims_common.suggest_memory_format(x) == torch.channels_last
    # Contiguous in both formats (a dimension is 1) or in neither: torch compares the order of the strides.
    return _is_ordered_as_channels_last(x.shape, x.stride())


def _is_ordered_as_channels_last(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """c10's ``is_channels_last_strides_2d``; torch's Python version takes ten times as long."""
    least = 0
    if strides[1] == 0:
        return False
    for d in (1, 3, 2, 0):
        if shape[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return False
        least = strides[d] * max(shape[d], 1)
    return True


@torch.library.custom_op("resnet_fused::in_format", mutates_args=())
def in_format(x: Tensor, channels_last: bool) -> Tensor:
    """A copy of x in channels_last or contiguous format, whose gradient is returned in the other format.

    ``Tensor.contiguous`` would return the gradient in the copy's format.
    """
    return x.clone(memory_format=_FORMATS[channels_last])


_FORMATS = (torch.contiguous_format, torch.channels_last)


@in_format.register_fake
def _fake(x: Tensor, channels_last: bool) -> Tensor:
    return torch.empty_like(x, memory_format=_FORMATS[channels_last])


def _setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
    ctx.back = not inputs[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    back: bool = ctx.back
    return grad if grad.is_contiguous(memory_format=_FORMATS[back]) else in_format(grad, back), None


in_format.register_autograd(_backward, setup_context=_setup_context)
