"""The one tolerance: at most twice the error that eager PyTorch makes in the same dtype, plus a few ulps.

Everything that judges numbers uses it: the tests, ``python -m resnet_fused verify``, the check of a kernel's first use.
"""

import torch
from torch import Tensor

ULPS = 4


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
