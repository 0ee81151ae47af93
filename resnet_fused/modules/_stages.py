"""A network's stages: fused blocks hand each other channels_last, everybody else sees eager's memory format."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..autograd import is_channels_last
from ..functional import PLAIN_TENSORS
from ._block import FusedBlock
from ._format import contiguous, nhwc_of_contiguous
from ._patches import is_patched, layers_are_patched
from ._train import trains_fused


def run_stages(x: Tensor, last: bool, stages: Iterable[nn.Module]) -> tuple[Tensor, bool]:
    """What the stages make of x, and whether eager would have it in channels_last; it may be so in any case.

    ``last``: the same of x. Where eager would be contiguous, x is copied for whoever is not a fused block, or is
    watched: called through hooks, compiled by itself, or with another forward than its class's.
    """
    part: Any
    for part in _parts(stages):
        y = None
        if isinstance(part, FusedBlock) and not is_watched(part):
            hidden = not last and trains_fused(part, x)
            y = part.computed(nhwc_of_contiguous(x) if hidden else x, hidden)
        if y is None:
            x = part(x if last else contiguous(x))
            last = isinstance(x, Tensor) and is_channels_last(x)
        else:
            x, last = y, last or part.turns_channels_last()
    return x, last


def anybody_looks_on(x: Tensor) -> bool:
    """Whether every module is to be called as eager calls it: for hooks and patches that are on all modules."""
    return type(x) not in PLAIN_TENSORS or x.dim() != 4 or _has_any_global_hook() or layers_are_patched()


def is_watched(module: nn.Module) -> bool:
    """Whether calling the module may do more than its class's forward."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or is_patched(module)
    )


def _parts(stages: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for stage in stages:
        if type(stage) is nn.Sequential and not is_watched(stage):
            yield from stage._modules.values()  # type: ignore[misc]
        else:
            yield stage
