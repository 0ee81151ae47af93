"""The CUDA plan for each convolution of a converted model, including its projection and prologue."""

from torch import nn

from .. import modules, ops, plans
from ..chain import layers
from ..chain.infer import is_projection
from ..chain.policy import torch_allows_tf32
from ..chain.spec import BlockSpec, Branch, Chain
from ..plans import Plan
from ._shapes import ConvCall


def cuda_plan(model: nn.Module, owner: str, call: ConvCall, calls: list[ConvCall], dtype: str, gpu: list[int]) -> Plan:
    """The plan for ``call``, a convolution of the converted module ``owner``."""
    block = model.get_submodule(owner)
    part = call.name.removeprefix(f"{owner}.")
    if not isinstance(block, modules.FusedBlock):  # a network: the call is its stem
        return _explain(call, dtype, gpu)
    whole = _whole_block(block, owner, call, calls, dtype, gpu)
    if whole is not None and whole.kernel == "sm90/block_fwd":
        return whole if part == "conv1" else plans.of_text(f"in conv1: one launch computes all of {owner}")
    plan = _plan_of_part(block, owner, part, call, calls, dtype, gpu)
    if whole is None:
        return plan
    _, _, reasons = whole.text.partition("\n")
    return plan._replace(rejected=[*plan.rejected, *whole.rejected], text=f"{plan.text}\n{reasons}")


def _whole_block(
    block: nn.Module, owner: str, call: ConvCall, calls: list[ConvCall], dtype: str, gpu: list[int]
) -> Plan | None:
    """The plan for an identity BasicBlock: one launch or two; None for other blocks."""
    own = [c for c in calls if c.name.startswith(f"{owner}.")]
    channels = call.input[1]
    geometry = ([channels, channels, 3, 3], [1, 1], [1, 1], [1, 1], 1)
    if not isinstance(block, modules.FusedBasicBlock) or len(own) != 2:
        return None
    if any((c.weight, c.stride, c.padding, c.dilation, c.groups) != geometry for c in own):
        return None
    return plans.read(ops.explain_cuda_block(call.input, dtype, True, torch_allows_tf32(), gpu))


def _plan_of_part(
    block: modules.FusedBlock, owner: str, part: str, call: ConvCall, calls: list[ConvCall], dtype: str, gpu: list[int]
) -> Plan:
    """The plan for one convolution of a block."""
    names, chain = layers.resolve(block, block._spec), layers.described(block, block._spec)
    assert isinstance(names, BlockSpec) and isinstance(chain, Chain), "the report says that the block runs fused"
    pre_activated, last = chain.norms[0] is not None, names.convs[-1]
    shortcut, projection = None, names.shortcut.conv if isinstance(names.shortcut, Branch) else names.shortcut
    if chain.shortcut is not None and chain.shortcut.conv is not None and is_projection(chain.shortcut.conv):
        shortcut = next(each for each in calls if f"{each.name}.".startswith(f"{owner}.{projection}."))
    if projection and f"{part}.".startswith(f"{projection}."):
        if shortcut is not None and shortcut.name == call.name:
            return plans.of_text(f"in {last}: a projection, included in the plan of {owner}.{last}")
        return plans.of_text("torch: a shortcut that is not a single 1x1 convolution, not fused")
    if part == last:
        if shortcut is None:
            return _explain(call, dtype, gpu, residual=chain.shortcut is not None)
        return _explain(call, dtype, gpu, "projection prologue" if pre_activated else "projection", shortcut)
    return _explain(call, dtype, gpu, "prologue" if pre_activated and part == names.convs[0] else "plain")


def _explain(
    call: ConvCall,
    dtype: str,
    gpu: list[int],
    mode: str = "plain",
    projection: ConvCall | None = None,
    residual: bool = False,
) -> Plan:
    geometry = (call.input, call.weight, call.stride, call.padding, call.dilation, call.groups)
    shortcut = ([], [1, 1]) if projection is None else (projection.input, projection.stride)
    return plans.read(ops.explain_cuda(*geometry, dtype, mode, *shortcut, residual, True, torch_allows_tf32(), gpu))
