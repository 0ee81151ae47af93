"""A convolution's input gradient together with the sums that the BatchNorm behind that input is trained by."""

from typing import Any

import torch
from torch import Tensor

from .. import ops
from .forward import allow_tf32
from .input_gradient import input_gradient, is_convolution
from .layout import ConvSlots

Sums = tuple[Tensor, Tensor]  # of g and of g * xhat


def sums_with_the_gradient(grad: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """Whether a chain has :func:`conv_backward_reduce` go back through ``conv``: on CUDA, where it saves a pass."""
    return grad.device.type == "cuda" and is_convolution(weight, conv)


def conv_backward_reduce(
    grad: Tensor, weight: Tensor, conv: ConvSlots, raw: Tensor, norm: tuple[Any, ...], beside: Tensor | None
) -> tuple[Tensor, Sums]:
    """From the gradient of ``conv(relu(bn(raw)))`` to that of ``relu(bn(raw))``, plus ``beside``, and its sums.

    ``norm``: the BatchNorm's arguments.
    """
    to_x, *sums = ops.conv_backward_reduce(
        grad, weight, conv.padding, conv.dilation, raw, *norm, beside, allow_tf32(grad)
    )
    return to_x, (sums[0], sums[1])


@torch.library.impl("resnet_fused::conv_backward_reduce", "CPU")
def _conv_backward_reduce_cpu(
    grad: Tensor, weight: Tensor, padding: list[int], dilation: list[int], x: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """What a chain does on the CPU, op by op."""
    *norm, beside, _allow_tf32 = args
    ops.check_conv_backward_reduce(grad, weight, padding, dilation, x, *norm, beside)
    pads, dilations = (padding[0], padding[1]), (dilation[0], dilation[1])
    to_x = input_gradient(grad, weight, ConvSlots(0, None, (1, 1), pads, dilations, 1), beside)
    if to_x is None:
        rest = (None, (1, 1), pads, dilations, False, (0, 0), 1, [True, False, False])
        to_x = torch.ops.aten.convolution_backward.default(grad, x, weight, *rest)[0]
        to_x = to_x if beside is None else to_x.add_(beside)
    to_x = to_x.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))
    return to_x, *ops.bn_act_backward_reduce(to_x, x, *norm, None, True)
