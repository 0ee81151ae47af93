"""The input gradient of a convolution, computed by our own convolution kernels where they are faster."""

import torch
from torch import Tensor

from .. import ops
from .forward import allow_tf32, prefers_own_pointwise, prefers_winograd, saved_pixels
from .layout import ConvSlots

# Flipping and packing the filter at every step takes as long as PyTorch's gradient of this many pixels.
MIN_SAVED_PIXELS_TO_FLIP = 600


def input_gradient(
    grad: Tensor, weight: Tensor, conv: ConvSlots, grad_addend: Tensor | None = None, internal: bool = False
) -> Tensor | None:
    """The gradient of a convolution's input, or None if ``aten::convolution_backward`` should compute it.

    With stride 1 it is a convolution of the output's gradient with the flipped filter (spatially flipped, input and
    output channels exchanged), with padding = filter extent - padding (Dumoulin and Visin 2016, arXiv:1603.07285,
    section 4.3). ``grad_addend``, another gradient of the same tensor, is added as the residual, before rounding.
    ``internal``: only chains read the result.
    """
    if not is_convolution(weight, conv) or not (
        _fuses_addend(grad, grad_addend) or _prefers_own_kernel(grad, weight, conv)
    ):
        return None
    flipped = weight if tuple(weight.shape[2:]) == (1, 1) else weight.flip(2, 3)
    flipped = flipped.transpose(0, 1).contiguous(memory_format=torch.channels_last)
    padding = [r - p for r, p in zip(_extent(weight, conv), conv.padding, strict=True)]
    no_norm = (None, None, None, None, 0.0)
    shape = ((1, 1), padding, conv.dilation, 1)
    return ops.conv_bn_act(
        grad, flipped, None, *no_norm, *shape, grad_addend, False, False, allow_tf32(grad), internal=internal
    )


def is_convolution(weight: Tensor, conv: ConvSlots) -> bool:
    """Whether the input gradient is a convolution: stride 1, one group, padding at most the filter's extent."""
    fits = all(p <= r for p, r in zip(conv.padding, _extent(weight, conv), strict=True))
    return conv.stride == (1, 1) and conv.groups == 1 and fits


def _extent(weight: Tensor, conv: ConvSlots) -> list[int]:
    """dilation * (filter size - 1), vertically and horizontally."""
    return [d * (size - 1) for d, size in zip(conv.dilation, weight.shape[2:], strict=True)]


def _fuses_addend(grad: Tensor, grad_addend: Tensor | None) -> bool:
    return grad_addend is not None and grad.device.type == "cuda"


def _prefers_own_kernel(grad: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    # Tensors of other types are being traced: comparing their sizes would add guards.
    if type(grad) is not Tensor:
        return False
    if prefers_own_pointwise(grad, weight, conv):
        return True
    return prefers_winograd(grad, weight, conv) and saved_pixels(grad) >= MIN_SAVED_PIXELS_TO_FLIP
