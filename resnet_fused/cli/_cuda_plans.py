"""The CUDA plan for each convolution of a converted model, including its projection and prologue."""

import torch
from torch import nn

from .. import modules, ops
from .._policy import torch_allows_tf32
from ..modules._read import projection_args
from ._shapes import ConvCall

_PRE_ACTIVATED = (modules.FusedPreActBlock, modules.FusedPreActBottleneck, modules.FusedPlainPreActBlock)
_WITHOUT_SHORTCUT = (modules.FusedPlainBlock, modules.FusedPlainPreActBlock)


def cuda_plan(model: nn.Module, owner: str, call: ConvCall, calls: list[ConvCall], dtype: str, gpu: list[int]) -> str:
    """The plan for ``call``, a convolution of the converted module ``owner``.

    The first line is the plan; further lines give the reasons against other kernels.
    """
    block = model.get_submodule(owner)
    part = call.name.removeprefix(f"{owner}.")
    if not isinstance(block, modules.FusedBlock):  # a network: the call is its stem
        return _explain(call, dtype, gpu)
    whole = _whole_block(block, owner, call, calls, dtype, gpu)
    if whole.startswith("sm90"):
        return whole if part == "conv1" else f"in conv1: one launch computes all of {owner}"
    return _plan_of_part(block, owner, part, call, calls, dtype, gpu) + whole


def _whole_block(
    block: nn.Module, owner: str, call: ConvCall, calls: list[ConvCall], dtype: str, gpu: list[int]
) -> str:
    """The plan for an identity BasicBlock in one launch, or the reasons against it; empty for other blocks."""
    own = [c for c in calls if c.name.startswith(f"{owner}.")]
    channels = call.input[1]
    geometry = ([channels, channels, 3, 3], [1, 1], [1, 1], [1, 1], 1)
    if not isinstance(block, modules.FusedBasicBlock) or len(own) != 2:
        return ""
    if any((c.weight, c.stride, c.padding, c.dilation, c.groups) != geometry for c in own):
        return ""
    plan = ops.explain_cuda_block(call.input, dtype, True, torch_allows_tf32(), gpu)
    return plan if plan.startswith("sm90") else plan[plan.index("\n") :]


def _plan_of_part(
    block: nn.Module, owner: str, part: str, call: ConvCall, calls: list[ConvCall], dtype: str, gpu: list[int]
) -> str:
    """The plan for one convolution of a block."""
    pre_activated = isinstance(block, _PRE_ACTIVATED)
    last = "conv3" if hasattr(block, "conv3") else "conv2"
    shortcut = _projection(block, owner, calls, dtype)
    if part.startswith("downsample"):
        if shortcut is not None and shortcut.name == call.name:
            return f"in {last}: a projection, included in the plan of {owner}.{last}"
        return "torch: a shortcut that is not a single 1x1 convolution, not fused"
    if part == last:
        if shortcut is None:
            return _explain(call, dtype, gpu, residual=not isinstance(block, _WITHOUT_SHORTCUT))
        return _explain(call, dtype, gpu, "projection prologue" if pre_activated else "projection", shortcut)
    return _explain(call, dtype, gpu, "prologue" if pre_activated and part == "conv1" else "plain")


def _projection(block: nn.Module, owner: str, calls: list[ConvCall], dtype: str) -> ConvCall | None:
    """The call of the block's projection shortcut if a kernel computes it, else None."""
    down = getattr(block, "downsample", None)
    with torch.no_grad():
        if down is None or projection_args(down, getattr(torch, dtype)) is None:
            return None
    return next(call for call in calls if f"{call.name}.".startswith(f"{owner}.downsample."))


def _explain(
    call: ConvCall,
    dtype: str,
    gpu: list[int],
    mode: str = "plain",
    projection: ConvCall | None = None,
    residual: bool = False,
) -> str:
    geometry = (call.input, call.weight, call.stride, call.padding, call.dilation, call.groups)
    shortcut = ([], [1, 1]) if projection is None else (projection.input, projection.stride)
    return ops.explain_cuda(*geometry, dtype, mode, *shortcut, residual, True, torch_allows_tf32(), gpu)
