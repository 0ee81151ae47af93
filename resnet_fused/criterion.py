"""The one tolerance: at most twice the error that eager PyTorch makes in the same dtype, plus a few ulps.

Everything that judges numbers uses it: the tests, ``python -m resnet_fused verify``, the check of a kernel's first use.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ULPS = 4
#: Of float64 eager PyTorch's result is the truth, so its own error is not known: this share of the largest value.
FLOAT64 = 1e-12


def allowed_error(eager: Tensor, truth: Tensor, judged: Tensor, rounded: Tensor) -> float:
    """The largest absolute error that passes.

    ``eager``: eager PyTorch's result in its own dtype; ``truth``: the result in float64; ``judged``: a mask of the
    elements that count; ``rounded``: float64, the values that were rounded, of whose largest an ulp is taken.
    """
    ulp = torch.finfo(eager.dtype).eps * rounded[judged].abs().max().item()
    return 2 * largest_error(eager, truth, judged) + ULPS * ulp


def largest_error(actual: Tensor, truth: Tensor, judged: Tensor) -> float:
    """The largest absolute difference from the truth among the elements that count."""
    return (actual.double() - truth)[judged].abs().max().item()


class TF32Factors(TorchDispatchMode):
    """Convolutions of factors that are rounded to TF32, as eager's are where its switch allows it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func.name() or "conv2d" in func.name():
            args = [tf32(a) if isinstance(a, Tensor) and a.dim() == 4 else a for a in args]
        return func(*args, **(kwargs or {}))


def tf32(x: Tensor) -> Tensor:
    """``x`` rounded as tensor cores round float32: 10 bits of fraction, ties away from zero; in its own dtype."""
    bits = x.to(torch.float32, copy=True).view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)
