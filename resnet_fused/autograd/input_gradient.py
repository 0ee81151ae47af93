"""A convolution's gradient with respect to its input, where a convolution of our own computes it faster."""

import torch
from torch import Tensor

from .. import ops
from .forward import allow_tf32, pointwise_is_faster, saved_pixels, winograd_is_faster
from .layout import ConvSlots

# Turning a weight around and putting it into our kernel's order, at every step, takes as long as PyTorch's gradient of
# so many pixels.
PIXELS_WORTH_TURNING = 600


def input_gradient(
    grad: Tensor, weight: Tensor, conv: ConvSlots, beside: Tensor | None = None, internal: bool = False
) -> Tensor | None:
    """The gradient from that of the output, or None where ``convolution_backward`` is to compute it.

    With stride 1 it is a convolution of the output's gradient: with the weight turned around in both directions of the
    image and its two channel dimensions exchanged, padded by what the filter reaches beyond the padding (Dumoulin and
    Visin 2016, arXiv:1603.07285, section 4.3). ``beside``, another gradient of the same tensor, is its residual, added
    before the one rounding. ``internal``: nobody but chains sees the result.
    """
    if not is_convolution(weight, conv) or not (_saves_a_pass(grad, beside) or _is_faster(grad, weight, conv)):
        return None
    turned = weight if tuple(weight.shape[2:]) == (1, 1) else weight.flip(2, 3)
    turned = turned.transpose(0, 1).contiguous(memory_format=torch.channels_last)
    padding = [r - p for r, p in zip(_reach(weight, conv), conv.padding, strict=True)]
    no_norm = (None, None, None, None, 0.0)
    shape = ((1, 1), padding, conv.dilation, 1)
    return ops.conv_bn_act(
        grad, turned, None, *no_norm, *shape, beside, False, False, allow_tf32(grad), internal=internal
    )


def is_convolution(weight: Tensor, conv: ConvSlots) -> bool:
    """Whether the input's gradient is a convolution too: stride 1, one group, no padding beyond the filter's reach."""
    fits = all(p <= r for p, r in zip(conv.padding, _reach(weight, conv), strict=True))
    return conv.stride == (1, 1) and conv.groups == 1 and fits


def _reach(weight: Tensor, conv: ConvSlots) -> list[int]:
    return [d * (size - 1) for d, size in zip(conv.dilation, weight.shape[2:], strict=True)]


def _saves_a_pass(grad: Tensor, beside: Tensor | None) -> bool:
    return beside is not None and grad.device.type == "cuda"


def _is_faster(grad: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    # While a compiler traces, tensors are of other types, and a decision would bound their sizes.
    if type(grad) is not Tensor:
        return False
    if pointwise_is_faster(grad, weight, conv):
        return True
    return winograd_is_faster(grad, weight, conv) and saved_pixels(grad) >= PIXELS_WORTH_TURNING
