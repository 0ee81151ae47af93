"""Reads convolutions, BatchNorms and shortcuts into the training op's arguments, on every call.

As in :mod:`._read`, a reader returns None if calling the modules would compute something that the op does not.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import autograd
from .._policy import PLAIN_TENSORS
from ._geometry import convolved_size, of_conv
from ._read import can_precompute, has_hooks_or_patches, has_shortcut, has_valid_numbers, shortcut_of


class Shortcut(NamedTuple):
    """A block's shortcut: x itself, a projection, or a module whose output is added."""

    identity: bool = False
    projection: tuple[autograd.Conv, autograd.Norm | None] | None = None
    norm: nn.Module | None = None  # the projection's
    module: nn.Module | None = None


NO_SHORTCUT = Shortcut()


def output_shape(x: Tensor, convs: Sequence[autograd.Conv]) -> tuple[Any, ...]:
    """The output shape of a sequence of convolutions of x."""
    size = tuple(x.shape[2:])
    for conv in convs:
        size = convolved_size(size, conv.weight, conv.stride, conv.padding, conv.dilation)
    return x.shape[0], convs[-1].weight.shape[0], *size


def read_conv(conv: Any, dtype: torch.dtype) -> autograd.Conv | None:
    """A convolution with weight and bias in ``dtype`` (autocast's or their own), or None."""
    if type(conv) is not nn.Conv2d or has_hooks_or_patches(conv):
        return None
    geometry = of_conv(conv)
    if geometry is None:
        return None
    weight: Any = conv._parameters.get("weight")
    bias: Any = conv._parameters.get("bias")
    given = [weight] if bias is None else [weight, bias]
    if not PLAIN_TENSORS.issuperset(map(type, given)):  # e.g. pruned, sharded or quantised
        return None
    return autograd.cast_conv(dtype, weight, bias, *geometry)


def read_norm(norm: Any, dtype: torch.dtype) -> autograd.Norm | None:
    """A BatchNorm for activations in ``dtype``, with running statistics unless it uses batch statistics, or None."""
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm) or has_hooks_or_patches(norm):
        return None
    parameters, buffers = norm._parameters, norm._buffers
    gamma: Any = parameters.get("weight")
    beta: Any = parameters.get("bias")
    mean: Any = buffers.get("running_mean")
    var: Any = buffers.get("running_var")
    if (norm.affine and gamma is None) or (mean is None) != (var is None):
        return None
    if norm.training and norm.track_running_stats and (mean is None or buffers.get("num_batches_tracked") is None):
        return None
    given = [t for t in (gamma, beta, mean, var) if t is not None]
    if not PLAIN_TENSORS.issuperset(map(type, given)):
        return None
    if not has_valid_numbers(norm):
        return None
    read = autograd.cast_norm(dtype, gamma, beta, mean, var, float(norm.eps))
    if read is None or not (norm.training or mean is None):
        return read
    return read._replace(mean=None, var=None, sync=_synchronises(norm))


def _synchronises(norm: Any) -> bool:
    """Whether batch statistics span several processes, by the condition of ``nn.SyncBatchNorm``."""
    distributed = torch.distributed
    if type(norm) is not nn.SyncBatchNorm or not norm.training:
        return False
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size(norm.process_group) > 1


def process_group(norms: Sequence[Any]) -> str | None:
    """The name of the process group that all of these BatchNorms share, "" for none, None if the groups differ."""
    groups: list[Any] = [norm.process_group or torch.distributed.group.WORLD for norm in norms if _synchronises(norm)]
    names = {str(group.group_name) for group in groups}
    if len(names) > 1:
        return None
    return names.pop() if names else ""


def read_shortcut(
    block: nn.Module, x: Tensor, dtype: torch.dtype, convs: Sequence[autograd.Conv], pre_activates: bool
) -> Shortcut | None:
    """The block's shortcut, or None if eager must run.

    If the block ``pre_activates``, every shortcut except the identity reads ``relu(bn(x))``.
    """
    if not has_shortcut(block):
        return None
    down: Any = shortcut_of(block)
    out = output_shape(x, convs)
    if down is None:
        # Other shapes broadcast or raise in eager, and eager adds before rounding to autocast's dtype.
        return Shortcut(identity=True) if x.dtype is dtype and tuple(x.shape) == out else None
    conv, norm = down, None
    if type(down) is nn.Sequential and not has_hooks_or_patches(down) and 1 <= len(down) <= 2:
        children = tuple(down._modules.values())
        conv, norm = children[0], children[1] if len(children) == 2 else None
    conv_args, norm_args = read_conv(conv, dtype), read_norm(norm, dtype)
    if conv_args is not None and (norm is None) == (norm_args is None) and output_shape(x, (conv_args,)) == out:
        return Shortcut(projection=(conv_args, norm_args), norm=norm)
    if not pre_activates and x.dtype is dtype and can_precompute(down):
        return Shortcut(module=down)
    return None
