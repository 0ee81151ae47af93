"""Reads convolutions, BatchNorms and shortcuts into what the training op takes, on every call.

As in :mod:`._read`, a reader returns None where calling the modules would do something that the op would not.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import autograd
from ..functional import PLAIN_TENSORS
from ._geometry import convolved_size, of_conv
from ._read import has_plain_numbers, has_shortcut, may_run_first, shortcut_of, touched


class Side(NamedTuple):
    """A block's shortcut: x itself, a projection, or a module that is called for what is to be added."""

    identity: bool = False
    projection: tuple[autograd.Conv, autograd.Norm | None] | None = None
    norm: nn.Module | None = None  # the projection's
    module: nn.Module | None = None


NO_SIDE = Side()


def shape_behind(x: Tensor, convs: Sequence[autograd.Conv]) -> tuple[Any, ...]:
    """The shape of what the convolutions make of x, one after another."""
    size = tuple(x.shape[2:])
    for conv in convs:
        size = convolved_size(size, conv.weight, conv.stride, conv.padding, conv.dilation)
    return x.shape[0], convs[-1].weight.shape[0], *size


def conv_of(conv: Any, dtype: torch.dtype) -> autograd.Conv | None:
    """A convolution with its weight and bias in ``dtype``, which is autocast's or their own."""
    if type(conv) is not nn.Conv2d or touched(conv):
        return None
    geometry = of_conv(conv)
    if geometry is None:
        return None
    weight: Any = conv._parameters.get("weight")
    bias: Any = conv._parameters.get("bias")
    given = [weight] if bias is None else [weight, bias]
    if not PLAIN_TENSORS.issuperset(map(type, given)):  # pruned, sharded or quantised
        return None
    return autograd.conv_in(dtype, weight, bias, *geometry)


def norm_of(norm: Any, dtype: torch.dtype) -> autograd.Norm | None:
    """A BatchNorm of activations in ``dtype``, with its statistics where it does not use the batch's."""
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm) or touched(norm):
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
    if not has_plain_numbers(norm):
        return None
    read = autograd.norm_in(dtype, gamma, beta, mean, var, float(norm.eps))
    if read is None or not (norm.training or mean is None):
        return read
    return read._replace(mean=None, var=None, sync=_synchronises(norm))


def _synchronises(norm: Any) -> bool:
    """Whether batch statistics are those of several processes: ``nn.SyncBatchNorm``'s own condition."""
    distributed = torch.distributed
    if type(norm) is not nn.SyncBatchNorm or not norm.training:
        return False
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size(norm.process_group) > 1


def process_group(norms: Sequence[Any]) -> str | None:
    """The name of the group whose processes all of these BatchNorms share, "" for none, None where groups differ."""
    groups: list[Any] = [norm.process_group or torch.distributed.group.WORLD for norm in norms if _synchronises(norm)]
    names = {str(group.group_name) for group in groups}
    if len(names) > 1:
        return None
    return names.pop() if names else ""


def side_of(
    block: nn.Module, x: Tensor, dtype: torch.dtype, convs: Sequence[autograd.Conv], pre_activates: bool
) -> Side | None:
    """What the block adds; where it ``pre_activates``, every shortcut but the identity reads ``relu(bn(x))``."""
    if not has_shortcut(block):
        return None
    down: Any = shortcut_of(block)
    out = shape_behind(x, convs)
    if down is None:
        # Eager broadcasts, or says why not, and adds without rounding to autocast's dtype.
        return Side(identity=True) if x.dtype is dtype and tuple(x.shape) == out else None
    conv, norm = down, None
    if type(down) is nn.Sequential and not touched(down) and 1 <= len(down) <= 2:
        children = tuple(down._modules.values())
        conv, norm = children[0], children[1] if len(children) == 2 else None
    read, read_norm = conv_of(conv, dtype), norm_of(norm, dtype)
    if read is not None and (norm is None) == (read_norm is None) and shape_behind(x, (read,)) == out:
        return Side(projection=(read, read_norm), norm=norm)
    if not pre_activates and x.dtype is dtype and may_run_first(down):
        return Side(module=down)
    return None
