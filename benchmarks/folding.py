"""Converts BatchNorm with running statistics for other libraries: to a scale and a shift, or to folded weights."""

from typing import Any

from torch import Tensor

BatchNorm = Any  # nn.BatchNorm2d or functional.BatchNorm: the same names


def scale_and_shift(bn: BatchNorm) -> tuple[Tensor, Tensor]:
    """``bn(y) = y * scale + shift``, in float64."""
    scale = bn.weight.double() * (bn.running_var.double() + bn.eps).rsqrt()
    return scale, bn.bias.double() - bn.running_mean.double() * scale


def folded(weight: Tensor, bn: BatchNorm) -> tuple[Tensor, Tensor]:
    """``bn(conv(x, weight)) = conv(x, w) + b``: w and b, in float64, in the weight's memory format."""
    scale, shift = scale_and_shift(bn)
    return weight.double() * scale[:, None, None, None], shift
