"""A network's stages: fused blocks hand each other channels_last, everybody else sees eager's memory format."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..autograd import Place, is_channels_last
from ..functional import PLAIN_TENSORS, is_exporting_elsewhere
from ._block import FusedBlock
from ._format import contiguous, nhwc_of_contiguous
from ._patches import layers_are_patched
from ._read import only_reads, shortcut_of, touched
from ._train import trains_fused

_FORWARD, _CALL = FusedBlock.forward, nn.Module.__call__


def run_stages(x: Tensor, last: bool, stages: Iterable[nn.Module]) -> tuple[Tensor, bool]:
    """What the stages make of x, and whether eager would have it in channels_last; it may be so in any case.

    ``last``: the same of x. Where eager would be contiguous, x is copied for whoever is not a fused block, or is
    watched: called through hooks, compiled by itself, or with another forward than its class's.
    """
    internal = False  # x was made for the next part alone
    for part, after in _parts(stages):
        y, for_next = None, False
        if isinstance(part, FusedBlock) and _is_called_as_known(part):
            hidden = not last and trains_fused(part, x)
            for_next = _is_read_by(after)
            place = Place(hidden, internal, for_next)
            y = part.computed(nhwc_of_contiguous(x) if hidden else x, place)
        if y is None:
            if internal:
                x = x.clone()  # into memory that the eager block may resize
            x, internal = part(x if last else contiguous(x)), False
            last = isinstance(x, Tensor) and is_channels_last(x)
        else:
            x, last, internal = y, last or part.turns_channels_last(), for_next
    return x, last


def anybody_looks_on(x: Tensor) -> bool:
    """Whether to call every module as eager does: for tracers, and hooks and patches that are on all modules."""
    if type(x) not in PLAIN_TENSORS or x.dim() != 4 or _has_any_global_hook():
        return True
    return layers_are_patched() or is_exporting_elsewhere()


def _is_called_as_known(block: FusedBlock) -> bool:
    """Whether calling the block is :meth:`FusedBlock.forward`, which a subclass or a patch may have replaced."""
    cls = type(block)
    return cls.forward is _FORWARD and cls.__call__ is _CALL and not touched(block)


def _is_read_by(after: Any) -> bool:
    """Whether what is made for ``after`` meets nobody but fused blocks, unless the eager block runs: it has a copy."""
    if torch.compiler.is_compiling():  # a compiler leaves out a copy that changes no value
        return False
    return isinstance(after, FusedBlock) and _is_called_as_known(after) and only_reads(shortcut_of(after))


def _parts(stages: Iterable[nn.Module]) -> Iterator[tuple[Any, Any]]:
    """Each part when its turn comes, since hooks may exchange it until then; and what is to follow, or None."""
    stages = list(stages)
    for stage, after in zip(stages, [*stages[1:], None], strict=True):
        if not _is_plain(stage):
            yield stage, None
            continue
        names = list(stage._modules)
        for name, next_name in zip(names, [*names[1:], None], strict=True):
            yield stage._modules[name], _first_of(after) if next_name is None else stage._modules[next_name]


def _is_plain(stage: Any) -> bool:
    return type(stage) is nn.Sequential and not touched(stage)


def _first_of(stage: Any) -> Any:
    return next(iter(stage._modules.values()), None) if _is_plain(stage) else None
