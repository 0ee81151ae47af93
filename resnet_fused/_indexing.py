"""Which sizes the kernels' 32-bit indices reach: asked of every tensor that a call would make, before it makes one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOST_ELEMENTS = 2**31 - 1

# channels, rows and columns of a window, stride, padding, dilation
Window = tuple[int, int, int, Any, Any, Any]


def window(weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Window:
    """What a convolution makes of what it reads."""
    channels, _, rows, columns = weight.shape
    return channels, rows, columns, stride, padding, dilation


def indexable(x: Tensor, windows: Sequence[Window] = ()) -> bool:
    """Whether x, and what each of the windows makes of what the one before it made, have few enough elements."""
    if torch.compiler.is_compiling():  # would bound a dynamic batch
        return True
    n, channels, h, w = x.shape
    if n * channels * h * w > MOST_ELEMENTS:
        return False
    for channels, rows, columns, stride, padding, dilation in windows:
        stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
        h = _out(h, rows, stride[0], padding[0], dilation[0])
        w = _out(w, columns, stride[1], padding[1], dilation[1])
        if n * channels * h * w > MOST_ELEMENTS:
            return False
    return True


def _out(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    # what is no convolution is left to its op, which says so
    return max(0, (size + 2 * padding - dilation * (kernel - 1) - 1) // max(stride, 1) + 1)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
