"""Converts torch tensors to addresses, strides and dtype numbers for the emulator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]  # in the order of csrc/cuda/device/types.h
#: Suffixes in names of kernel sources.
SUFFIXES = {torch.float32: "tf32", torch.float16: "f16", torch.bfloat16: "bf16"}
POISON = 0xA5


class BatchNorm(NamedTuple):
    gamma: Tensor | None = None
    beta: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    bias: Tensor | None = None  # of the convolution before it
    eps: float = 1e-5


def vectors(bn: BatchNorm) -> tuple:
    """Arguments of ``batch_norm_of`` (bindings/batch_norm.h): ``(address, stride, dtype)`` per vector, then eps."""
    absent = (0, 0, 0)
    return (*(absent if v is None else (v.data_ptr(), v.stride(0), DTYPES.index(v.dtype)) for v in bn[:5]), bn.eps)


def span(t: Tensor) -> tuple[int, int]:
    """Address of a tensor's first element, and bytes from there to the end of its last element."""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), (1 + last if t.numel() else 0) * t.element_size()
