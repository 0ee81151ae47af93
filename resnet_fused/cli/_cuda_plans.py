"""What a GPU would run for each convolution of a converted model: a projection and a BatchNorm before included."""

import torch
from torch import nn

from .. import modules, ops
from ..functional import torch_allows_tf32
from ..modules._read import projection
from ._shapes import ConvCall

_PRE_ACTIVATED = (modules.FusedPreActBlock, modules.FusedPreActBottleneck, modules.FusedPlainPreActBlock)
_WITHOUT_SHORTCUT = (modules.FusedPlainBlock, modules.FusedPlainPreActBlock)


def cuda_plan(model: nn.Module, owner: str, call: ConvCall, calls: list[ConvCall], dtype: str, gpu: list[int]) -> str:
    """The plan for ``call``, a convolution of the converted module ``owner``; further lines say why not another."""
    block = model.get_submodule(owner)
    part = call.name.removeprefix(f"{owner}.")
    if not isinstance(block, modules.FusedBlock):  # a network, whose stem this is
        return _explain(call, dtype, gpu)
    whole = _whole_block(block, owner, call, calls, dtype, gpu)
    if whole.startswith("sm90"):
        return whole if part == "conv1" else f"in conv1: the launch that is {owner} as a whole"
    return _plan_of_part(block, owner, part, call, calls, dtype, gpu) + whole


def _whole_block(
    block: nn.Module, owner: str, call: ConvCall, calls: list[ConvCall], dtype: str, gpu: list[int]
) -> str:
    """The plan for an identity BasicBlock in one launch, or the lines that say why not; nothing for other blocks."""
    own = [c for c in calls if c.name.startswith(f"{owner}.")]
    channels = call.input[1]
    same = ([channels, channels, 3, 3], [1, 1], [1, 1], [1, 1], 1)
    if not isinstance(block, modules.FusedBasicBlock) or len(own) != 2:
        return ""
    if any((c.weight, c.stride, c.padding, c.dilation, c.groups) != same for c in own):
        return ""
    plan = ops.explain_cuda_block(call.input, dtype, True, torch_allows_tf32(), gpu)
    return plan if plan.startswith("sm90") else plan[plan.index("\n") :]


def _plan_of_part(
    block: nn.Module, owner: str, part: str, call: ConvCall, calls: list[ConvCall], dtype: str, gpu: list[int]
) -> str:
    """The plan for one convolution of a block."""
    pre_activated = isinstance(block, _PRE_ACTIVATED)
    last = "conv3" if hasattr(block, "conv3") else "conv2"
    side = _projection(block, owner, calls, dtype)
    if part.startswith("downsample"):
        if side is not None and side.name == call.name:
            return f"in {last}: a projection, which the plan of {owner}.{last} includes"
        return "torch: a shortcut that is no single 1x1 convolution, runs as it is"
    if part == last:
        if side is None:
            return _explain(call, dtype, gpu, residual=not isinstance(block, _WITHOUT_SHORTCUT))
        return _explain(call, dtype, gpu, "projection prologue" if pre_activated else "projection", side)
    return _explain(call, dtype, gpu, "prologue" if pre_activated and part == "conv1" else "plain")


def _projection(block: nn.Module, owner: str, calls: list[ConvCall], dtype: str) -> ConvCall | None:
    """The call of the block's projection shortcut, if it has one that kernels sum."""
    down = getattr(block, "downsample", None)
    with torch.no_grad():
        if down is None or projection(down, getattr(torch, dtype)) is None:
            return None
    return next(call for call in calls if f"{call.name}.".startswith(f"{owner}.downsample."))


def _explain(
    call: ConvCall,
    dtype: str,
    gpu: list[int],
    mode: str = "plain",
    side: ConvCall | None = None,
    residual: bool = False,
) -> str:
    geometry = (call.input, call.weight, call.stride, call.padding, call.dilation, call.groups)
    shortcut = ([], [1, 1]) if side is None else (side.input, side.stride)
    return ops.explain_cuda(*geometry, dtype, mode, *shortcut, residual, True, torch_allows_tf32(), gpu)
