"""Packs tensors of :mod:`resnet_fused.functional` calls that need gradients into one differentiable op.

A convolution is ``(weight, bias, stride, padding, dilation, groups)``. A BatchNorm is ``(gamma, beta, mean, var, eps)``
as in the ops; :data:`NO_NORM` stands for no BatchNorm.
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
    """Runs the chain of :mod:`resnet_fused.autograd.layout` with convolutions in ``dtype``; None if eager must run."""
    projection_conv, projection_norm = (None, NO_NORM) if projection is None else projection
    all_norms = (*norms, projection_norm)
    if any(_norm_requires_eager(norm) for norm in all_norms):
        return None
    cast_convs = [conv for conv in (autograd.cast_conv(dtype, *conv) for conv in convs) if conv is not None]
    cast_projection = None if projection_conv is None else autograd.cast_conv(dtype, *projection_conv)
    cast_norms = [None if _is_absent(norm) else autograd.cast_norm(dtype, *norm) for norm in all_norms]
    if len(cast_convs) < len(convs) or (cast_projection is None) != (projection_conv is None):
        return None
    if any(norm is None and not _is_absent(given) for norm, given in zip(cast_norms, all_norms, strict=True)):
        return None
    # Under autocast, eager normalises and adds in x's own dtype, before any rounding to autocast's dtype.
    if (identity or cast_norms[0] is not None) and x.dtype is not dtype:
        return None
    if residual is not None and residual.dtype is not dtype:
        return None
    *chain_norms, last_norm = cast_norms
    args = autograd.pack(
        cast_convs,
        chain_norms,
        projection=None if cast_projection is None else (cast_projection, last_norm),
        residual=residual,
        identity=identity,
        relu=relu,
        pool=pool,
    )
    return autograd.run_chain(x.to(dtype), *args, "")


def _is_absent(norm: tuple[Any, ...]) -> bool:
    return norm[2] is None


def _norm_requires_eager(norm: tuple[Any, ...]) -> bool:
    """Whether only one of the two statistics is given, or one of them requires a gradient."""
    gamma, beta, mean, var, _ = norm
    if mean is None or var is None:
        return any(t is not None for t in (gamma, beta, mean, var))
    return bool(mean.requires_grad or var.requires_grad)
