"""A convolution's input gradient together with the sums that the preceding BatchNorm's gradients need."""

from typing import Any

import torch
from torch import Tensor

from .. import ops
from .forward import allow_tf32
from .input_gradient import input_gradient, is_convolution
from .layout import ConvSlots

Sums = tuple[Tensor, Tensor]  # per-channel sums of g and of g * xhat


def fuses_gradient_sums(grad: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """Whether a chain uses :func:`conv_backward_reduce` for ``conv``: on CUDA, where it saves a pass."""
    return grad.device.type == "cuda" and is_convolution(weight, conv)


def conv_backward_reduce(
    grad: Tensor, weight: Tensor, conv: ConvSlots, pre_bn: Tensor, norm: tuple[Any, ...], grad_addend: Tensor | None
) -> tuple[Tensor, Sums]:
    """Backward through ``conv(relu(bn(pre_bn)))``: ``relu(bn(pre_bn))``'s gradient plus ``grad_addend``, and its sums.

    ``norm``: the BatchNorm's arguments.
    """
    grad_x, *sums = ops.conv_backward_reduce(
        grad, weight, conv.padding, conv.dilation, pre_bn, *norm, grad_addend, allow_tf32(grad)
    )
    return grad_x, (sums[0], sums[1])


@torch.library.impl("resnet_fused::conv_backward_reduce", "CPU")
def _conv_backward_reduce_cpu(
    grad: Tensor, weight: Tensor, padding: list[int], dilation: list[int], x: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The CPU implementation: separate ops."""
    *norm, grad_addend, _allow_tf32 = args
    ops.check_conv_backward_reduce(grad, weight, padding, dilation, x, *norm, grad_addend)
    pads, dilations = (padding[0], padding[1]), (dilation[0], dilation[1])
    grad_x = input_gradient(grad, weight, ConvSlots(0, None, (1, 1), pads, dilations, 1), grad_addend)
    if grad_x is None:
        rest = (None, (1, 1), pads, dilations, False, (0, 0), 1, [True, False, False])
        grad_x = torch.ops.aten.convolution_backward.default(grad, x, weight, *rest)[0]
        grad_x = grad_x if grad_addend is None else grad_x.add_(grad_addend)
    grad_x = grad_x.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))
    return grad_x, *ops.bn_act_backward_reduce(grad_x, x, *norm, None, True)
