"""The training path of blocks: reads modules into one differentiable op and updates running statistics."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import autograd
from .._indexing import indexable, window
from .._policy import PLAIN_TENSORS
from ._read import is_relu, training_dtype
from ._read_training import NO_SHORTCUT, output_shape, process_group, read_conv, read_norm, read_shortcut


def trains_fused(module: nn.Module, x: Tensor) -> bool:
    """Whether ``module`` may use the training path for x, before looking at its submodules."""
    return training_dtype(x) is not None and getattr(module, "fused_training", True)


def train(
    block: nn.Module,
    x: Tensor,
    convs: Sequence[str],
    norms: Sequence[str | None],
    *,
    relu: bool,
    shortcut: bool,
    visibility: autograd.Visibility = autograd.ALL_VISIBLE,
    pool: autograd.Pool | None = None,
) -> Tensor | None:
    """The output of a chain of the block's modules (see :mod:`resnet_fused.autograd.layout`), None if eager must run.

    ``norms`` has one more name than ``convs``; None means no BatchNorm. ``shortcut``: add the block's ``downsample``.
    ``relu``: apply a ReLU after the last BatchNorm or the addition. ``pool``: max-pool after the ReLU.
    """
    dtype = training_dtype(x)
    children = block._modules
    if dtype is None or not getattr(block, "fused_training", True) or not is_relu(children.get("relu")):
        return None
    pre_activates = norms[0] is not None
    if pre_activates and x.dtype is not dtype:  # under autocast, eager normalises x before it rounds
        return None
    modules: list[Any] = [None if name is None else children.get(name) for name in norms]
    read_convs: list[Any] = [read_conv(children.get(name), dtype) for name in convs]
    read_norms: list[Any] = [
        None if name is None else read_norm(module, dtype) for name, module in zip(norms, modules, strict=True)
    ]
    if any(conv is None for conv in read_convs) or [n is None for n in read_norms] != [name is None for name in norms]:
        return None
    channels = read_convs[-1].weight.shape[0] if read_convs else x.shape[1]
    windows = [window(conv.weight, *conv[2:5]) for conv in read_convs]
    if pool is not None:
        windows.append((channels, *pool[0], pool[1], pool[2], 1))
    if not indexable(x, windows):
        return None
    block_shortcut = read_shortcut(block, x, dtype, read_convs, pre_activates) if shortcut else NO_SHORTCUT
    if block_shortcut is None:
        return None
    modules.append(block_shortcut.norm)
    group = process_group(modules)
    if group is None:
        return None
    # From here on there is no fallback to eager: the shortcut's module must be called only once.
    residual: Any = None if block_shortcut.module is None else block_shortcut.module(x)
    fuses_residual = residual is not None and _is_fusable_residual(residual, x, dtype, read_convs)
    adds_residual = residual is not None and not fuses_residual
    args = autograd.pack(
        read_convs,
        read_norms,
        projection=block_shortcut.projection,
        residual=residual if fuses_residual else None,
        identity=block_shortcut.identity,
        relu=relu and not adds_residual,
        recompute=getattr(block, "recompute", False),
        visibility=visibility,
        pool=pool,
    )
    read_norms.append(None if block_shortcut.projection is None else block_shortcut.projection[1])
    batch_norms = [m for m, norm in zip(modules, read_norms, strict=True) if norm is not None and norm.mean is None]

    y = autograd.run_chain(x.to(dtype), *args, group, lambda batches: autograd.update_running(batch_norms, batches))
    if adds_residual:
        y += residual  # broadcasts or raises, as in eager
        y = y.relu() if relu else y
    return y


def _is_fusable_residual(residual: Any, x: Tensor, dtype: torch.dtype, convs: Sequence[autograd.Conv]) -> bool:
    """Whether a shortcut's output is a plain tensor with the output's shape and dtype, which the op can add."""
    is_plain = type(residual) in PLAIN_TENSORS and residual.dtype is dtype
    return is_plain and tuple(residual.shape) == output_shape(x, convs)
