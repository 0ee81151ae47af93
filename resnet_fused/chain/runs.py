"""Convolutions with BatchNorm and ReLU inside a module that is no residual block: each runs as one op in inference."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import infer, layers
from .memory_format import contiguous, has_channels_last_weight, is_channels_last, nhwc
from .policy import Setting, module_setting
from .read import Memory, Seen
from .spec import BlockSpec, Chain, Reason


class Rewrite(NamedTuple):
    """The ``forward`` of a module with its runs of convolution, BatchNorm and ReLU as calls.

    ``function(scope, x)``: ``scope`` has the module's attributes and :meth:`Scope.rf_run`. ``specs``: the runs.
    """

    function: Callable[[Any, Tensor], Any]
    specs: tuple[BlockSpec, ...]


_PART = "runs"
ALL = BlockSpec((), (None,), (), relu=False, part=_PART, derived=True)  # compares everything in the module


class Scope:
    """A module during one call of its rewritten ``forward``. Its names stay apart from the module's."""

    def __init__(self, module: nn.Module, runs: list[Seen]) -> None:
        self._rf_module, self._rf_runs = module, runs
        self._rf_fused, self._rf_reason = 0, Reason("its convolutions were not called")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rf_module, name)

    def rf_run(self, index: int, x: Tensor) -> Tensor:
        """The output of a run: fused, or layer by layer where a kernel would compute something else."""
        seen = self._rf_runs[index]
        found = self._rf_check(seen, x)
        if isinstance(found, Reason):
            self._rf_reason = found
            return self._rf_eager(seen.spec, x)
        self._rf_fused += 1
        y = infer.run(nhwc(x), *found, keep_packed=True)
        return contiguous(y) if y.is_contiguous() else y  # BatchNorm gives default strides where both formats fit

    def _rf_check(self, seen: Seen, x: Tensor) -> tuple[Chain, Setting] | Reason:
        how = module_setting(x)
        if isinstance(how, Reason):
            return how
        if isinstance(seen.chain, Reason):
            return seen.chain
        if seen.uses_batch_statistics:
            return Reason("{name} uses batch statistics", seen.spec.norms[-1] or "")
        if not (is_channels_last(x) or has_channels_last_weight(layers.find(self._rf_module, seen.spec.convs[0]))):
            return Reason("the input of {name} is not channels_last", seen.spec.convs[0])
        checked = seen.check(x, how, trains=False)
        return checked if isinstance(checked, Reason) else (checked, how)

    def _rf_eager(self, spec: BlockSpec, x: Tensor) -> Tensor:
        norm = layers.find(self._rf_module, spec.norms[-1] or "")
        y = norm(layers.find(self._rf_module, spec.convs[0])(x))
        return F.relu(y) if spec.relu and type(layers.norms.activation(norm)) is not nn.ReLU else y

    def rf_outcome(self) -> Reason | None:
        """Why no convolution of the call ran fused; None if one did."""
        return None if self._rf_fused else self._rf_reason


def scope(module: nn.Module, rewrite: Callable[[Any], Rewrite | Reason], x: Tensor) -> tuple[Any, Scope] | Reason:
    """The rewritten ``forward`` for the module as it is now, or why eager runs."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return Reason("the input is a {}, not a plain tensor, or a compiler is tracing", "", type(x))
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters())):
        return Reason("gradients are enabled; chains are fused in inference only")
    if x.numel() == 0:
        return Reason("the input is empty")
    how = module_setting(x)
    if isinstance(how, Reason):
        return how
    memory = module.__dict__.setdefault("_seen", Memory())
    seen = memory.get(_PART)
    if seen is None or not seen.is_current(module, ALL):
        memory.pop(_PART, None)
        seen = Seen(module, ALL)
        if isinstance(seen.chain, Reason):
            return seen.chain
        found = rewrite(module)
        seen.runs = (
            found if isinstance(found, Reason) else (found.function, [Seen(module, each) for each in found.specs])
        )
        memory[_PART] = seen
    if isinstance(seen.runs, Reason):
        return seen.runs
    function, runs = seen.runs
    return function, Scope(module, [each if each.is_reusable() else Seen(module, each.spec) for each in runs])
