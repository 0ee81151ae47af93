"""Reads a convolution, its BatchNorm and a shortcut from modules into the ops' arguments, on every call.

Each reader returns None where calling the modules would do something that the ops would not: an unusual
class, a hook, batch statistics, a gradient. Parameters are read from ``_parameters``, never cached, so an
exchanged or moved one is seen. (``_parameters["weight"]`` costs a tenth of ``.weight``.)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional, ops
from .._indexing import Window, indexable, window
from ..functional import PLAIN_TENSORS
from ..reference import ZeroPadShortcut
from ._geometry import convolved_size, of_conv
from ._patches import is_patched, layers_are_patched

_STRIDE, _PADDING, _GROUPS = 7, 8, 10  # places in what conv_norm and conv_alone read


def kernel_dtype(x: Tensor) -> tuple[torch.dtype | None, tuple[bool, bool]]:
    """:func:`resnet_fused.functional.kernel_dtype`, and eager where torch's layers are patched."""
    return (None, (False, False)) if layers_are_patched() else functional.kernel_dtype(x)


def training_dtype(x: Tensor) -> torch.dtype | None:
    """:func:`resnet_fused.functional.training_dtype`, and eager where torch's layers are patched."""
    return None if layers_are_patched() else functional.training_dtype(x)


def conv_norm(conv: nn.Module | None, norm: nn.Module | None, dtype: torch.dtype) -> tuple[Any, ...] | None:
    """``weight, bias, gamma, beta, mean, var, eps, stride, padding, dilation, groups``, weight cast to dtype."""
    read = _conv(conv, dtype)
    bn = batch_norm(norm)
    if read is None or bn is None:
        return None
    weights, geometry = read
    return (*weights, *bn, *geometry)


def conv_alone(conv: nn.Module | None, dtype: torch.dtype) -> tuple[Any, ...] | None:
    """:func:`conv_norm` of a convolution that no BatchNorm follows."""
    read = _conv(conv, dtype)
    if read is None:
        return None
    weights, geometry = read
    no_norm = (None, None, None, None, 0.0)  # not a global: torch.compile(dynamic=True) would make 0.0 an input
    return (*weights, *no_norm, *geometry)


def all_indexable(x: Tensor, *convs: tuple[Any, ...], then: Window | None = None) -> bool:
    """:func:`indexable` of the convolutions that :func:`conv_norm` read, each of what the one before it made."""
    return indexable(x, [*(window(conv[0], *conv[7:10]) for conv in convs), *([] if then is None else [then])])


def batch_norm(norm: nn.Module | None) -> tuple[Any, ...] | None:
    """``gamma, beta, mean, var, eps`` of a BatchNorm that uses its running statistics."""
    if type(norm) is not nn.BatchNorm2d or norm.training or touched(norm):
        return None
    parameters, buffers = norm._parameters, norm._buffers
    gamma, beta = parameters.get("weight"), parameters.get("bias")
    mean, var = buffers.get("running_mean"), buffers.get("running_var")
    if type(mean) not in PLAIN_TENSORS or type(var) not in PLAIN_TENSORS:
        return None
    if norm.affine and (gamma is None or type(gamma) not in PLAIN_TENSORS):
        return None
    if not has_plain_numbers(norm) or (beta is not None and type(beta) not in PLAIN_TENSORS):
        return None
    if torch.is_grad_enabled() and (_trains(gamma) or _trains(beta)):
        return None
    return gamma, beta, mean, var, float(norm.eps)


def has_plain_numbers(norm: Any) -> bool:
    """Whether a BatchNorm's eps and momentum are what eager takes in training too; of others it knows what to say."""
    eps, momentum = norm.eps, norm.momentum
    return isinstance(eps, int | float) and eps > 0 and (momentum is None or isinstance(momentum, int | float))


def is_relu(module: nn.Module | None) -> bool:
    return type(module) is nn.ReLU and not touched(module)


def shortcut(
    block: nn.Module,
    x: Tensor,
    dtype: torch.dtype,
    convs: Sequence[tuple[Any, ...]],
    pre: tuple[Any, ...] | None = None,
) -> tuple[Any, ...] | None:
    """What the block's last convolution adds: ``(residual,)``, or a projection's fourteen arguments.

    The projection is a 1x1 convolution with or without a BatchNorm: ``proj_x ... pre_eps``. ``convs`` are the block's
    own, as :func:`conv_norm` reads them. With ``pre``, what :func:`batch_norm` read of a pre-activation block, every
    shortcut but the identity is one of ``relu(pre(x))``.
    """
    if not has_shortcut(block):
        return None
    channels = convs[-1][0].shape[0]
    down: Any = shortcut_of(block)
    size = tuple(x.shape[2:])
    for conv in convs:
        size = convolved_size(size, conv[0], *conv[_STRIDE:_GROUPS])
    if down is None:
        # Eager broadcasts, or says why not, and adds without rounding to autocast's dtype.
        return (x,) if x.dtype is dtype and (x.shape[1], *x.shape[2:]) == (channels, *size) else None
    args = projection(down, dtype)
    if args is not None:
        if (args[0].shape[0], *convolved_size(x.shape[2:], args[0], args[7], (0, 0), (1, 1))) != (channels, *size):
            return None
        return (x.to(dtype), *args, *((None, None, None, None, 0.0) if pre is None else pre))
    if may_run_first(down) and x.dtype is dtype and not _has_trainable(down):
        return (down(x if pre is None else ops.bn_add_act(x, *pre, None, True)),)
    return None


def projection(down: Any, dtype: torch.dtype) -> tuple[Any, ...] | None:
    """``proj_weight ... proj_stride`` of a shortcut that is a 1x1 convolution with or without a BatchNorm."""
    conv, norm = down, None
    if type(down) is nn.Sequential and not touched(down):
        children = tuple(down._modules.values())
        if not 1 <= len(children) <= 2:
            return None
        conv, norm = children[0], children[-1] if len(children) == 2 else None
    args = conv_alone(conv, dtype) if norm is None else conv_norm(conv, norm, dtype)
    if args is None or args[0].shape[2:] != (1, 1) or args[_PADDING] != (0, 0) or args[_GROUPS] != 1:
        return None
    return args[:8]  # up to the stride


def touched(module: nn.Module) -> bool:
    """Whether calling the module may do other than its class's forward with its registered parameters.

    :func:`layers_are_patched` says the same of all modules at once.
    """
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or is_patched(module)
    )


def has_shortcut(block: nn.Module) -> bool:
    """Whether the block still has its attribute ``downsample``, be it None."""
    return "downsample" in block.__dict__ or "downsample" in block._modules


def shortcut_of(block: nn.Module) -> Any:
    """The block's ``downsample``: a module, None, or a callable that is no module."""
    attributes = block.__dict__
    return attributes["downsample"] if "downsample" in attributes else block._modules.get("downsample")


def may_run_first(down: Any) -> bool:
    """Whether a shortcut without a kernel of its own may be called before the block's convolutions, and be added later.

    It must not act in place on what the convolutions read, and nobody may be watching: the block's input may have
    another memory format than eager's. Of torch's own layers both is known.
    """
    if type(down) not in (ZeroPadShortcut, nn.Identity, nn.Sequential):
        return False
    return all(
        (type(part) is ZeroPadShortcut or type(part).__module__.startswith("torch.nn.modules."))
        and not touched(part)
        and not getattr(part, "inplace", False)
        for part in down.modules()
    )


def only_reads(down: Any) -> bool:
    """Whether a shortcut certainly leaves what it is given as it is, its memory too."""
    return down is None or (type(down) is nn.Conv2d and not touched(down)) or may_run_first(down)


def _conv(conv: nn.Module | None, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor | None], tuple[Any, ...]] | None:
    """``(weight, bias), (stride, padding, dilation, groups)``."""
    if type(conv) is not nn.Conv2d or touched(conv):
        return None
    weight: Any = conv._parameters.get("weight")
    bias = conv._parameters.get("bias")
    if weight is None or type(weight) not in PLAIN_TENSORS:  # pruned, sharded or quantised
        return None
    geometry = of_conv(conv)
    if geometry is None:
        return None
    if torch.is_grad_enabled() and (_trains(weight) or _trains(bias)):
        return None
    if weight.dtype is not dtype:
        if not torch.is_autocast_enabled(weight.device.type) or weight.dtype is torch.float64:
            return None
        weight = weight.to(dtype)
    return (weight, bias), geometry


def _trains(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad


def _has_trainable(module: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
