"""The training path of blocks: modules read into one differentiable op, and their running averages updated after it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import autograd
from .._indexing import indexable, window
from ..functional import PLAIN_TENSORS
from ._read import is_relu, training_dtype
from ._read_training import NO_SIDE, conv_of, norm_of, process_group, shape_behind, side_of


def trains_fused(module: nn.Module, x: Tensor) -> bool:
    """Whether ``module`` may train fused with such an x, whatever its parts say."""
    return training_dtype(x) is not None and getattr(module, "fused_training", True)


def train(
    block: nn.Module,
    x: Tensor,
    convs: Sequence[str],
    norms: Sequence[str | None],
    *,
    relu: bool,
    shortcut: bool,
    place: autograd.Place = autograd.ALONE,
    pool: autograd.Pool | None = None,
) -> Tensor | None:
    """The output of a chain of the block's modules (see :mod:`resnet_fused.autograd.layout`), None for eager.

    ``norms`` has one more name than ``convs``, None where there is no BatchNorm. ``shortcut`` adds the block's
    ``downsample``, ``relu`` follows the last BatchNorm or the addition, ``pool`` the ReLU."""
    dtype = training_dtype(x)
    children = block._modules
    if dtype is None or not getattr(block, "fused_training", True) or not is_relu(children.get("relu")):
        return None
    pre_activates = norms[0] is not None
    if pre_activates and x.dtype is not dtype:  # eager would normalise x before it rounds
        return None
    modules: list[Any] = [None if name is None else children.get(name) for name in norms]
    read_convs: list[Any] = [conv_of(children.get(name), dtype) for name in convs]
    read_norms: list[Any] = [
        None if name is None else norm_of(module, dtype) for name, module in zip(norms, modules, strict=True)
    ]
    if any(conv is None for conv in read_convs) or [n is None for n in read_norms] != [name is None for name in norms]:
        return None
    channels = read_convs[-1].weight.shape[0] if read_convs else x.shape[1]
    windows = [window(conv.weight, *conv[2:5]) for conv in read_convs]
    if pool is not None:
        windows.append((channels, *pool[0], pool[1], pool[2], 1))
    if not indexable(x, windows):
        return None
    side = side_of(block, x, dtype, read_convs, pre_activates) if shortcut else NO_SIDE
    if side is None:
        return None
    modules.append(side.norm)
    group = process_group(modules)
    if group is None:
        return None
    # Nothing below falls back to eager: a module is called once.
    residual: Any = None if side.module is None else side.module(x)
    by_the_op = residual is not None and _is_added_by_the_op(residual, x, dtype, read_convs)
    beside = residual is not None and not by_the_op
    args = autograd.pack(
        read_convs,
        read_norms,
        projection=side.projection,
        residual=residual if by_the_op else None,
        identity=side.identity,
        relu=relu and not beside,
        recompute=getattr(block, "recompute", False),
        place=place,
        pool=pool,
    )
    read_norms.append(None if side.projection is None else side.projection[1])
    learning = [m for m, norm in zip(modules, read_norms, strict=True) if norm is not None and norm.mean is None]

    y = autograd.run_chain(x.to(dtype), *args, group, lambda batches: autograd.update_running(learning, batches))
    if beside:
        y += residual  # eager broadcasts, or says why not
        y = y.relu() if relu else y
    return y


def _is_added_by_the_op(residual: Any, x: Tensor, dtype: torch.dtype, convs: Sequence[autograd.Conv]) -> bool:
    """Whether what a shortcut returned is a tensor of the output's shape."""
    is_plain = type(residual) in PLAIN_TENSORS and residual.dtype is dtype
    return is_plain and tuple(residual.shape) == shape_behind(x, convs)
