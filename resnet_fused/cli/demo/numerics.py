"""Errors against an fp64 reference, and the bound for the fused error.

Errors are relative to the reference's largest value: max|y - reference| / max|reference|.
"""

import copy

import torch
from torch import Tensor, nn


def reference(model: nn.Module, x: Tensor) -> Tensor:
    """The output of the eager ``model`` in fp64, from the same (rounded) parameters and input."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


def relative_error(y: Tensor, reference: Tensor) -> float:
    """max|y - reference| / max|reference|; NaN if y contains NaN, which exceeds every bound."""
    return ((y.double() - reference).abs().max() / reference.abs().max()).item()


def error_bound(eager_error: float, dtype: torch.dtype) -> float:
    """Twice eager's own error plus 4 ulps of the largest value."""
    return 2 * eager_error + 4 * torch.finfo(dtype).eps


def unexplained_flips(eager: Tensor, fused: Tensor, tolerance: float) -> int:
    """Number of rows whose argmax differs although eager's two largest logits differ by more than ``tolerance``.

    ``tolerance`` is relative to eager's largest logit.
    """
    best = eager.double().topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > tolerance * eager.double().abs().max()
    return int(((eager.argmax(1) != fused.argmax(1)) & clear).sum())
