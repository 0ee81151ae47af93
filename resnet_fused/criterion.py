"""The project's error tolerance: twice the error of eager PyTorch in the same dtype, plus 4 ulps.

Used by the tests, by ``python -m resnet_fused verify`` and by the check of a kernel's first use.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ULPS = 4
#: In float64 eager PyTorch is the reference, so its own error is unknown: tolerance relative to the largest value.
FLOAT64 = 1e-12


def allowed_error(eager: Tensor, truth: Tensor, judged: Tensor, rounded: Tensor) -> float:
    """The largest absolute error that passes: ``2 * max|eager - truth| + 4 ulps of max|rounded|``.

    Args:
        eager: eager PyTorch's result in its own dtype.
        truth: the result in float64.
        judged: boolean mask of the elements to compare.
        rounded: float64 values whose largest magnitude defines the ulp.
    """
    ulp = torch.finfo(eager.dtype).eps * rounded[judged].abs().max().item()
    return 2 * largest_error(eager, truth, judged) + ULPS * ulp


def largest_error(actual: Tensor, truth: Tensor, judged: Tensor) -> float:
    """The largest absolute difference from ``truth`` among the ``judged`` elements."""
    return (actual.double() - truth)[judged].abs().max().item()


class TF32Factors(TorchDispatchMode):
    """Rounds the operands of convolutions to TF32, as eager PyTorch's kernels do when TF32 is allowed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func.name() or "conv2d" in func.name():
            args = [tf32(a) if isinstance(a, Tensor) and a.dim() == 4 else a for a in args]
        return func(*args, **(kwargs or {}))


def tf32(x: Tensor) -> Tensor:
    """``x`` rounded to TF32 as tensor cores do (10 fraction bits, ties away from zero), in ``x``'s own dtype."""
    bits = x.to(torch.float32, copy=True).view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)
