"""Reads a convolution, its BatchNorm and a shortcut from modules into the ops' arguments, on every call.

A reader returns None if calling the modules would compute something that the ops do not: an unknown class, a hook,
batch statistics, a gradient. Parameters are read from ``_parameters`` on every call and never cached, so a replaced or
moved Parameter is seen. (``_parameters["weight"]`` costs a tenth of ``.weight``.)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _policy, ops
from .._indexing import Window, indexable, window
from .._policy import PLAIN_TENSORS
from ..reference import ZeroPadShortcut
from ._geometry import convolved_size, of_conv
from ._patches import is_patched, layers_are_patched

_STRIDE, _PADDING, _GROUPS = 7, 8, 10  # indices in the tuples of conv_norm and conv_without_norm


def kernel_dtype(x: Tensor) -> tuple[torch.dtype | None, _policy.ConvOptions]:
    """:func:`resnet_fused._policy.kernel_dtype`, but eager if torch's layers are patched."""
    return (None, _policy.EAGER_OPTIONS) if layers_are_patched() else _policy.kernel_dtype(x)


def training_dtype(x: Tensor) -> torch.dtype | None:
    """:func:`resnet_fused._policy.training_dtype`, but eager if torch's layers are patched."""
    return None if layers_are_patched() else _policy.training_dtype(x)


def conv_norm(conv: nn.Module | None, norm: nn.Module | None, dtype: torch.dtype) -> tuple[Any, ...] | None:
    """``(weight, bias, gamma, beta, mean, var, eps, stride, padding, dilation, groups)``, weight in ``dtype``."""
    conv_args = _conv(conv, dtype)
    bn = batch_norm(norm)
    if conv_args is None or bn is None:
        return None
    weights, geometry = conv_args
    return (*weights, *bn, *geometry)


def conv_without_norm(conv: nn.Module | None, dtype: torch.dtype) -> tuple[Any, ...] | None:
    """:func:`conv_norm` for a convolution without BatchNorm."""
    conv_args = _conv(conv, dtype)
    if conv_args is None:
        return None
    weights, geometry = conv_args
    no_norm = (None, None, None, None, 0.0)  # not a global: torch.compile(dynamic=True) would make 0.0 a graph input
    return (*weights, *no_norm, *geometry)


def all_convs_indexable(x: Tensor, *convs: tuple[Any, ...], then: Window | None = None) -> bool:
    """:func:`indexable` for successive convolutions as read by :func:`conv_norm`, then the window ``then``."""
    return indexable(x, [*(window(conv[0], *conv[7:10]) for conv in convs), *([] if then is None else [then])])


def batch_norm(norm: nn.Module | None) -> tuple[Any, ...] | None:
    """``(gamma, beta, mean, var, eps)`` of a BatchNorm that uses its running statistics."""
    if type(norm) is not nn.BatchNorm2d or norm.training or has_hooks_or_patches(norm):
        return None
    parameters, buffers = norm._parameters, norm._buffers
    gamma, beta = parameters.get("weight"), parameters.get("bias")
    mean, var = buffers.get("running_mean"), buffers.get("running_var")
    if type(mean) not in PLAIN_TENSORS or type(var) not in PLAIN_TENSORS:
        return None
    if norm.affine and (gamma is None or type(gamma) not in PLAIN_TENSORS):
        return None
    if not has_valid_numbers(norm) or (beta is not None and type(beta) not in PLAIN_TENSORS):
        return None
    if torch.is_grad_enabled() and (_requires_grad(gamma) or _requires_grad(beta)):
        return None
    return gamma, beta, mean, var, float(norm.eps)


def has_valid_numbers(norm: Any) -> bool:
    """Whether a BatchNorm's eps and momentum are valid for training too; for others, eager raises the error."""
    eps, momentum = norm.eps, norm.momentum
    return isinstance(eps, int | float) and eps > 0 and (momentum is None or isinstance(momentum, int | float))


def is_relu(module: nn.Module | None) -> bool:
    return type(module) is nn.ReLU and not has_hooks_or_patches(module)


def shortcut_args(
    block: nn.Module,
    x: Tensor,
    dtype: torch.dtype,
    convs: Sequence[tuple[Any, ...]],
    pre: tuple[Any, ...] | None = None,
) -> tuple[Any, ...] | None:
    """The shortcut that the block's last convolution adds: ``(residual,)``, or the 14 arguments of a projection.

    A projection is a 1x1 convolution with or without a BatchNorm; its arguments are ``proj_x ... pre_eps``. ``convs``
    are the block's convolutions as read by :func:`conv_norm`. ``pre`` is the first BatchNorm of a pre-activation block,
    as read by :func:`batch_norm`; with it, every shortcut except the identity reads ``relu(pre(x))``.
    """
    if not has_shortcut(block):
        return None
    channels = convs[-1][0].shape[0]
    down: Any = shortcut_of(block)
    size = tuple(x.shape[2:])
    for conv in convs:
        size = convolved_size(size, conv[0], *conv[_STRIDE:_GROUPS])
    if down is None:
        # Other shapes broadcast or raise in eager, and eager adds before rounding to autocast's dtype.
        return (x,) if x.dtype is dtype and (x.shape[1], *x.shape[2:]) == (channels, *size) else None
    args = projection_args(down, dtype)
    if args is not None:
        if (args[0].shape[0], *convolved_size(x.shape[2:], args[0], args[7], (0, 0), (1, 1))) != (channels, *size):
            return None
        return (x.to(dtype), *args, *((None, None, None, None, 0.0) if pre is None else pre))
    if can_precompute(down) and x.dtype is dtype and not _any_requires_grad(down):
        return (down(x if pre is None else ops.bn_add_act(x, *pre, None, True)),)
    return None


def projection_args(down: Any, dtype: torch.dtype) -> tuple[Any, ...] | None:
    """``(proj_weight ... proj_stride)`` if the shortcut is a 1x1 convolution with or without BatchNorm, else None."""
    conv, norm = down, None
    if type(down) is nn.Sequential and not has_hooks_or_patches(down):
        children = tuple(down._modules.values())
        if not 1 <= len(children) <= 2:
            return None
        conv, norm = children[0], children[-1] if len(children) == 2 else None
    args = conv_without_norm(conv, dtype) if norm is None else conv_norm(conv, norm, dtype)
    if args is None or args[0].shape[2:] != (1, 1) or args[_PADDING] != (0, 0) or args[_GROUPS] != 1:
        return None
    return args[:8]  # up to and including the stride


def has_hooks_or_patches(module: nn.Module) -> bool:
    """Whether calling the module may run more than its class's ``forward``: it has hooks or instance patches.

    :func:`layers_are_patched` covers patches of whole classes.
    """
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or is_patched(module)
    )


def has_shortcut(block: nn.Module) -> bool:
    """Whether the block still has an attribute ``downsample``, which may be None."""
    return "downsample" in block.__dict__ or "downsample" in block._modules


def shortcut_of(block: nn.Module) -> Any:
    """The block's ``downsample``: a module, None, or another callable."""
    attributes = block.__dict__
    return attributes["downsample"] if "downsample" in attributes else block._modules.get("downsample")


def can_precompute(down: Any) -> bool:
    """Whether a shortcut without a kernel can be evaluated before the block's convolutions and added afterwards.

    It must not modify the input in place, and user code must not observe the input, whose memory format may differ from
    eager's. torch's own layers without hooks satisfy both.
    """
    if type(down) not in (ZeroPadShortcut, nn.Identity, nn.Sequential):
        return False
    return all(
        (type(part) is ZeroPadShortcut or type(part).__module__.startswith("torch.nn.modules."))
        and not has_hooks_or_patches(part)
        and not getattr(part, "inplace", False)
        for part in down.modules()
    )


def is_read_only(down: Any) -> bool:
    """Whether a shortcut is known to leave its input and the input's storage unchanged."""
    return down is None or (type(down) is nn.Conv2d and not has_hooks_or_patches(down)) or can_precompute(down)


def _conv(conv: nn.Module | None, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor | None], tuple[Any, ...]] | None:
    """``(weight, bias), (stride, padding, dilation, groups)``, or None."""
    if type(conv) is not nn.Conv2d or has_hooks_or_patches(conv):
        return None
    weight: Any = conv._parameters.get("weight")
    bias = conv._parameters.get("bias")
    if weight is None or type(weight) not in PLAIN_TENSORS:  # e.g. pruned, sharded or quantised
        return None
    geometry = of_conv(conv)
    if geometry is None:
        return None
    if torch.is_grad_enabled() and (_requires_grad(weight) or _requires_grad(bias)):
        return None
    if weight.dtype is not dtype:
        if not torch.is_autocast_enabled(weight.device.type) or weight.dtype is torch.float64:
            return None
        weight = weight.to(dtype)
    return (weight, bias), geometry


def _requires_grad(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad


def _any_requires_grad(module: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
