"""Size limits of the kernels' 32-bit indices, checked for every tensor that a call would create."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MAX_ELEMENTS = 2**31 - 1

# output channels, window height, window width, stride, padding, dilation
Window = tuple[int, int, int, Any, Any, Any]


def window(weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Window:
    """The :data:`Window` of a convolution with this weight (K, C / groups, R, S)."""
    channels, _, rows, columns = weight.shape
    return channels, rows, columns, stride, padding, dilation


def indexable(x: Tensor, windows: Sequence[Window] = ()) -> bool:
    """Whether ``x`` and the outputs of ``windows``, applied one after another, have at most 2^31 - 1 elements each."""
    if torch.compiler.is_compiling():  # a comparison would add a guard that bounds a dynamic batch size
        return True
    n, channels, h, w = x.shape
    if n * channels * h * w > MAX_ELEMENTS:
        return False
    for channels, rows, columns, stride, padding, dilation in windows:
        stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
        h = _out(h, rows, stride[0], padding[0], dilation[0])
        w = _out(w, columns, stride[1], padding[1], dilation[1])
        if n * channels * h * w > MAX_ELEMENTS:
            return False
    return True


def _out(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    # Invalid geometry is reported by the op itself.
    return max(0, (size + 2 * padding - dilation * (kernel - 1) - 1) // max(stride, 1) + 1)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
