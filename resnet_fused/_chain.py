"""The user's functions with gradients, as one differentiable op each: their tensors, read into a chain.

A convolution is ``weight, bias, stride, padding, dilation, groups`` here, a BatchNorm with its statistics
``gamma, beta, mean, var, eps`` as in the ops, and all None but eps where there is none.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import autograd

NO_NORM: tuple[Any, ...] = (None, None, None, None, 0.0)


def chain(
    x: Tensor,
    dtype: torch.dtype,
    convs: Sequence[tuple[Any, ...]],
    norms: Sequence[tuple[Any, ...]],
    projection: tuple[tuple[Any, ...], tuple[Any, ...]] | None,
    residual: Tensor | None,
    identity: bool,
    relu: bool,
    pool: autograd.Pool | None = None,
) -> Tensor | None:
    """What :mod:`resnet_fused.autograd.layout` describes, convolved in ``dtype``; None where only eager is right."""
    side_conv, side_norm = (None, NO_NORM) if projection is None else projection
    all_norms = (*norms, side_norm)
    if any(_is_only_eagers(norm) for norm in all_norms):
        return None
    read = [conv for conv in (autograd.conv_in(dtype, *conv) for conv in convs) if conv is not None]
    side = None if side_conv is None else autograd.conv_in(dtype, *side_conv)
    read_norms = [None if _is_absent(norm) else autograd.norm_in(dtype, *norm) for norm in all_norms]
    if len(read) < len(convs) or (side is None) != (side_conv is None):
        return None
    if any(norm is None and not _is_absent(given) for norm, given in zip(read_norms, all_norms, strict=True)):
        return None
    # Eager adds, and normalises what it is given, before it rounds to autocast's dtype.
    if (identity or read_norms[0] is not None) and x.dtype is not dtype:
        return None
    if residual is not None and residual.dtype is not dtype:
        return None
    *own_norms, norm = read_norms
    projected = None if side is None else (side, norm)
    args = autograd.pack(
        read, own_norms, projection=projected, residual=residual, identity=identity, relu=relu, pool=pool
    )
    return autograd.run_chain(x.to(dtype), *args, "")


def _is_absent(norm: tuple[Any, ...]) -> bool:
    return norm[2] is None


def _is_only_eagers(norm: tuple[Any, ...]) -> bool:
    """A BatchNorm whose statistics are absent in part, or are themselves differentiated."""
    gamma, beta, mean, var, _ = norm
    if mean is None or var is None:
        return any(t is not None for t in (gamma, beta, mean, var))
    return bool(mean.requires_grad or var.requires_grad)
