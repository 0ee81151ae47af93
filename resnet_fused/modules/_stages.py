"""Runs a network's stages: fused blocks pass channels_last to each other, other code sees eager's memory format."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..chain import program, read
from ..chain.layers import has_hooks_or_patches
from ..chain.memory_format import contiguous, is_channels_last, nhwc_with_contiguous_grad
from ..chain.patches import layers_are_patched
from ..chain.policy import PLAIN_TENSORS, Setting, is_exporting, module_setting
from ..chain.read import may_train
from ..chain.spec import Reason, Visibility
from ._block import FusedBlock
from ._replay import replayed

_FORWARD, _CALL = FusedBlock.forward, nn.Module.__call__


def run_stages(x: Tensor, channels_last: bool, stages: Iterable[nn.Module]) -> tuple[Tensor, bool]:
    """Runs the stages; returns the output and whether eager's output would be channels_last.

    ``channels_last``: whether eager's x would be channels_last. The actual format of x and of the output may be
    channels_last in either case. Where eager's tensor would be contiguous, x is copied to contiguous for every module
    that is not a fused block or that user code can observe: a module with hooks, with its own ``compile()``, or with a
    replaced ``forward``.
    """
    return _run_blocks(x, channels_last, _blocks_with_next(stages))


def _run_blocks(x: Tensor, channels_last: bool, blocks: Iterable[tuple[Any, Any]]) -> tuple[Tensor, bool]:
    internal = False  # whether only the next block reads x, which then has the default call
    how: Setting | Reason | None = None  # for activations of this dtype, until user code runs
    dtype: torch.dtype | None = None
    for block, after in blocks:
        y, for_next = None, False
        if internal or (isinstance(block, FusedBlock) and _has_default_call(block)):
            if how is None or x.dtype is not dtype:
                how, dtype = module_setting(x), x.dtype
            hidden = not channels_last and may_train(block, how)
            for_next = _is_internal_to(after)
            visibility = Visibility(hidden, internal, for_next)
            z = nhwc_with_contiguous_grad(x) if hidden and torch.is_grad_enabled() else x
            y = block.fused_forward(z, visibility, how)
        if y is None:
            program.abandon()
            if internal:
                x = x.clone()  # the eager block may resize its input, so it must not be in pooled memory
            x, internal, how = block(x if channels_last else contiguous(x)), False, None
            channels_last = isinstance(x, Tensor) and is_channels_last(x)
        else:
            x, channels_last, internal = y, channels_last or block.outputs_channels_last(), for_next
    return x, channels_last


def is_observed(x: Tensor) -> bool:
    """Whether every module must be called as in eager: under tracers, or with global hooks or patches."""
    if type(x) not in PLAIN_TENSORS or x.dim() != 4 or _has_any_global_hook():
        return True
    if torch._C._are_functorch_transforms_active():
        return True
    return layers_are_patched() or is_exporting()


def _has_default_call(block: FusedBlock) -> bool:
    """Whether calling the block runs :meth:`FusedBlock.forward` and nothing else (no override, patch or hook)."""
    if block.shows_memory_format():
        return False
    cls = type(block)
    forwards = cls.forward is _FORWARD or getattr(cls.forward, "runs_fused", False)
    return forwards and cls.__call__ is _CALL and not has_hooks_or_patches(block)


def _is_internal_to(after: Any) -> bool:
    """Whether only fused blocks read the output passed to ``after``; if its eager block runs, it gets a copy."""
    if torch.compiler.is_compiling():  # the compiler would remove the copy
        return False
    return isinstance(after, FusedBlock) and _has_default_call(after)


def _blocks_with_next(stages: Iterable[nn.Module]) -> Iterator[tuple[Any, Any]]:
    """Yields each block and the one after it, or None. Lazy: hooks may replace a block before its turn."""
    stages = list(stages)
    for stage, after in zip(stages, [*stages[1:], None], strict=True):
        if not _is_plain(stage):
            yield stage, None
            continue
        yield from _children_with_next(stage, _first_block(after))


def _children_with_next(stage: Any, after: Any) -> Iterator[tuple[Any, Any]]:
    names = list(stage._modules)
    for name, next_name in zip(names, [*names[1:], None], strict=False):  # of different lengths if there are none
        yield stage._modules[name], after if next_name is None else stage._modules[next_name]


def _is_plain(stage: Any) -> bool:
    return type(stage) in (nn.Sequential, FusedStage) and not has_hooks_or_patches(stage)


def _first_block(stage: Any) -> Any:
    return next(iter(stage._modules.values()), None) if _is_plain(stage) else None


class FusedStage(nn.Sequential):
    """An ``nn.Sequential`` of a network that is not known as a whole: fused blocks pass channels_last to each other.

    The output, and the input of everything else in the stage, have eager's memory format.
    """

    _eager_class = nn.Sequential

    def forward(self, input: Tensor) -> Tensor:
        if is_observed(input):
            return nn.Sequential.forward(self, input)
        y, last = replayed(
            self,
            input,
            "stage",
            (),
            lambda: _run_blocks(input, is_channels_last(input), _children_with_next(self, None)),
        )
        return y if last or not isinstance(y, Tensor) else contiguous(y)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        read.forget(self)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        read.forget(self)
        super()._load_from_state_dict(*args, **kwargs)
