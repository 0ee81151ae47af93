"""Memory formats: kernels run in channels_last, while tensors visible to user code have eager's format."""

from typing import Any

import torch
from torch import Tensor, nn


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
        return in_format(x, True)
    return nhwc(x)


def contiguous(x: Any) -> Any:
    """x in contiguous format with exactly the default strides, even for dimensions of size 0 or 1.

    Anything that is not a 4-d tensor is returned unchanged.
    """
    if not isinstance(x, Tensor) or x.dim() != 4:
        return x
    if torch.compiler.is_compiling():
        if _needs_gradient(x) and not x.is_contiguous():
            return in_format(x, False)
        return x.contiguous()
    _, c, h, w = (max(size, 1) for size in x.shape)
    if x.stride() == (c * h * w, h * w, w, 1):
        return x
    return in_format(x, False) if _needs_gradient(x) else x.clone(memory_format=torch.contiguous_format)


def _needs_gradient(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
