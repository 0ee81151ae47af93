"""A convolution's gradient with respect to its weight, where a kernel of our own computes it faster."""

from typing import Any

from torch import Tensor

from .. import ops
from .forward import NO_NORM, winograd_is_faster
from .layout import ConvSlots


def weight_gradient(
    grad: Tensor, raw: Tensor, norm: tuple[Any, ...] | None, weight: Tensor, conv: ConvSlots
) -> Tensor | None:
    """From the gradient of ``conv(relu(bn(raw)))``, or of ``conv(raw)`` without ``norm``, the BatchNorm's arguments.

    None where ``convolution_backward`` is to compute it. The BatchNorm and ReLU are applied as raw is read.
    """
    if not winograd_is_faster(grad, weight, conv):
        return None
    return ops.conv_backward_weight(grad, raw, *(norm or NO_NORM), weight, *conv[2:])
