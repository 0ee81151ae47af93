"""Tensor maps as numbers, in the order in which kernels/tensor_numbers.cpp reads them."""

from __future__ import annotations

import numpy as np

from .definitions import Window

MOST_RANK = 5
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # csrc/cuda/device/types.h


def _padded(values: tuple[int, ...], fill: int) -> list[int]:
    return [*values, *[fill] * (MOST_RANK - len(values))]


def shape(dtype: str, tensor: np.ndarray) -> list[int]:
    """Numbers of the shape of a C-order array. The map's first dimension is the innermost."""
    strides = (0, *reversed(tensor.strides[:-1]))
    return [DTYPES[dtype], tensor.ndim, *_padded(tensor.shape[::-1], 1), *_padded(strides, 0)]


def tiled(
    dtype: str, tensor: np.ndarray, box: tuple[int, ...], step: tuple[int, ...] = (), swizzle: int = 0
) -> list[int]:
    return [*shape(dtype, tensor), *_padded(box, 1), *_padded(step or (1,) * len(box), 1), swizzle]


def im2col(dtype: str, x: np.ndarray, window: Window, channels: int, pixels: int, swizzle: int = 0) -> list[int]:
    """The im2col map of x (NHWC)."""
    lower = [-window.pad[i] for i in (1, 0)]  # W, H
    upper = [window.pad[i] - window.dilation[i] * (window.taps[i] - 1) for i in (1, 0)]
    step = _padded((1, window.stride[1], window.stride[0], 1), 1)
    return [*shape(dtype, x), *lower, *upper, channels, pixels, *step, swizzle]
