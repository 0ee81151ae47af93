"""The weight gradient of a convolution, computed by our own kernel where it is faster."""

from typing import Any

from torch import Tensor

from .. import ops
from .forward import NO_NORM, prefers_winograd
from .layout import ConvSlots


def weight_gradient(
    grad: Tensor, pre_bn: Tensor, norm: tuple[Any, ...] | None, weight: Tensor, conv: ConvSlots
) -> Tensor | None:
    """The weight's gradient from that of ``conv(relu(bn(pre_bn)))``, or without ``norm`` from that of ``conv(pre_bn)``.

    ``norm``: the BatchNorm's arguments; BatchNorm and ReLU are applied while pre_bn is read. None if
    ``aten::convolution_backward`` should compute the gradient.
    """
    if not prefers_winograd(grad, weight, conv):
        return None
    return ops.conv_backward_weight(grad, pre_bn, *(norm or NO_NORM), weight, *conv[2:])
