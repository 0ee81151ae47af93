"""A convolution's gradient with respect to its input, where a convolution of our own computes it faster."""

import torch
from torch import Tensor

from .. import ops
from .forward import ours_is_faster
from .layout import ConvSlots

# Turning a weight around reads it against its order, at every step: fewer pixels than this are PyTorch's.
PIXELS_WORTH_TURNING = 4096


def input_gradient(grad: Tensor, weight: Tensor, conv: ConvSlots) -> Tensor | None:
    """The gradient from that of the output, or None where ``convolution_backward`` is to compute it.

    With stride 1 it is a convolution of the output's gradient: with the weight turned around in both directions of the
    image and its two channel dimensions exchanged, padded by what is left of ``kernel - 1`` (Dumoulin and Visin 2016,
    arXiv:1603.07285, section 4.3). So Winograd's algorithm takes it wherever it takes the forward convolution.
    """
    # While a compiler traces, tensors are of other types, and a decision would bound their sizes.
    if type(grad) is not Tensor or grad.shape[0] * grad.shape[2] * grad.shape[3] < PIXELS_WORTH_TURNING:
        return None
    padding = [size - 1 - p for size, p in zip(weight.shape[2:], conv.padding, strict=True)]
    if min(padding) < 0 or not ours_is_faster(grad, weight, conv):
        return None
    turned = weight.flip((2, 3)).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    no_norm = (None, None, None, None, 0.0)
    shape = (conv.stride, padding, conv.dilation, conv.groups)
    return ops.conv_bn_act(grad, turned, None, *no_norm, *shape, None, False, False, False)
